import json
import socket
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.commands import doctor


def findings(call):
    outcome = call("doctor", "--json")
    return outcome.code, {item["name"]: item for item in json.loads(outcome.out)["findings"]}


@pytest.fixture
def service():
    """An HTTP server that answers `/health` with the status that is put into the list."""
    answers = [200]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answers[-1] if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()
        thread.join()


def test_a_fresh_machine_is_usable_and_stays_as_it_was(call, home):
    code, found = findings(call)
    assert code == 0
    assert {"Python", "torch", "prefect", "fastapi", "devices", "MLflow", "Prefect", "free disk"} <= set(
        found
    )
    assert all(item["status"] != "unusable" for item in found.values())
    assert not home.exists()


def test_services_that_answer_are_fine_and_passwords_stay_hidden(call, monkeypatch, service):
    address, _ = service
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("PREFECT_API_URL", address.replace("http://", "http://me:secret@"))
    _, found = findings(call)
    assert found["MLflow"]["status"] == "ok"
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize(("answer", "status", "wanted"), [(500, "unusable", 1), (401, "warning", 0)])
def test_a_service_that_answers_with_an_error_is_told_apart(
    call, monkeypatch, service, answer, status, wanted
):
    address, answers = service
    answers.append(answer)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    code, found = findings(call)
    assert (found["MLflow"]["status"], code) == (status, wanted)


def test_a_service_that_is_down_is_unusable(call, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    code, found = findings(call)
    assert code == 1
    assert found["Prefect"]["status"] == "unusable"
    assert "unset its address" in found["Prefect"]["detail"]


@pytest.mark.parametrize("name", ["MLflow", "Prefect"])
def test_a_service_that_hangs_is_unusable_and_not_waited_for(monkeypatch, name):
    monkeypatch.setattr(doctor, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        began = time.monotonic()
        found = doctor._tracking(address) if name == "MLflow" else doctor._orchestrator(address, Path())
    assert time.monotonic() - began < 5
    assert (found.name, found.status) == (name, "unusable")
    assert "cannot be reached (timed out)" in found.detail


def test_a_damaged_tracking_database_is_unusable(call, home):
    home.mkdir()
    (home / "mlflow.db").write_text("no database, but longer than the header of one" * 5)
    code, found = findings(call)
    assert code == 1
    assert found["MLflow"]["status"] == "unusable"


def test_a_tracking_database_is_opened(call, home):
    home.mkdir()
    sqlite3.connect(home / "mlflow.db").close()
    _, found = findings(call)
    assert found["MLflow"] == {"name": "MLflow", "status": "ok", "detail": str(home / "mlflow.db")}


def test_a_catalog_is_opened_and_a_damaged_one_is_unusable(call, catalog):
    assert "2 selection versions" in findings(call)[1]["catalog"]["detail"]
    catalog.write_bytes(b"no catalog")
    code, found = findings(call)
    assert (found["catalog"]["status"], code) == ("unusable", 1)


@pytest.mark.parametrize(
    ("version", "status"), [("0.150.9", "ok"), ("0.151.0rc1", "unusable"), ("1.0", "unusable")]
)
def test_a_package_that_breaks_the_server_is_unusable(monkeypatch, version, status):
    monkeypatch.setitem(
        doctor.__dict__, "_package", lambda name: doctor.Finding(name=name, status="ok", detail=version)
    )
    found = {item.name: item.status for item in doctor._pins()}
    assert found["fastapi"] == status


@pytest.mark.parametrize(
    ("free", "status"), [(100 * 2**20, "unusable"), (2**30, "warning"), (10 * 2**30, "ok")]
)
def test_little_disk_is_a_warning_and_almost_none_unusable(monkeypatch, tmp_path, free, status):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert doctor._disk(tmp_path / "absent").status == status


def test_the_table_names_what_is_wrong(call, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLUSTERUCB_HOME", str(tmp_path / "file" / "home"))
    outcome = call("doctor")
    assert outcome.code == 1
    assert "is no folder" in outcome.out
