"""The local stack as a whole: started twice, looked at from outside, stopped. Takes some minutes."""

import os
import socket
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from local_stack import ROOT, LocalStack, run_python, running_stack

from clusterucb_core.config import load_config
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

pytestmark = pytest.mark.slow
SERVERS = ("postgres", "prefect", "mlflow")
WORKER = "worker-clusterucb-process"
RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
LOG_AN_ARTIFACT = """
import mlflow
with mlflow.start_run() as run:
    mlflow.log_text("kept", "folder/note.txt")
address = run.info.artifact_uri
print(address, mlflow.artifacts.load_text(f"{address}/folder/note.txt"))
"""


@pytest.fixture(scope="module")
def stack():
    with running_stack() as made:
        yield made


@pytest.fixture(scope="module")
def second(stack):
    """A second `up`, after one worker was killed and a trigger's deployment is gone."""
    before = stack.pids()
    psutil.Process(before[WORKER]).kill()
    trigger = {"type": "event", "posture": "Reactive", "expect": ["x"], "threshold": 1, "within": 0}
    action = {"type": "run-deployment", "source": "selected", "deployment_id": str(uuid4())}
    for name in ("gone__automation_1", "of-a-person"):
        stack.api("POST", "automations/", {"name": name, "trigger": trigger, "actions": [action]})
    done = stack.script("up")
    assert done.returncode == 0, done.stderr
    return before, stack.pids(), done.stderr


def test_it_tells_the_addresses_and_how_to_use_them(stack):
    assert f"http://127.0.0.1:{stack.port['PREFECT']}\n" in stack.printed
    assert f"http://127.0.0.1:{stack.port['MLFLOW']}\n" in stack.printed
    assert f"source {stack.folder / 'env'}\n" in stack.printed
    variables = stack.environment()
    assert variables["CLUSTERUCB_HOME"] == str(stack.home)
    assert variables["CLUSTERUCB_CHECKOUT"] == str(ROOT)
    assert variables["DO_NOT_TRACK"] == "1"


def test_the_second_time_it_starts_only_what_had_died(second):
    before, after, messages = second
    assert {name: after[name] for name in SERVERS} == {name: before[name] for name in SERVERS}
    assert after[WORKER] != before[WORKER]
    assert messages.count("runs already") == len(SERVERS)
    assert f"{WORKER}: starting" in messages


def test_automations_of_deployments_that_are_gone_are_removed_and_others_stay(stack, second):
    names = {automation["name"] for automation in stack.api("POST", "automations/filter", {})}
    assert "of-a-person" in names
    assert "gone__automation_1" not in names
    assert "removed automation gone__automation_1" in second[2]


def test_the_databases_are_in_postgresql(stack):
    variables = stack.environment()
    settings = stack.api("GET", "admin/settings")
    assert settings["server"]["analytics_enabled"] is False
    assert (stack.folder / "postgres" / "data" / "PG_VERSION").exists()
    assert not list(stack.home.rglob("*.db"))
    assert httpx.get(f"{variables['MLFLOW_TRACKING_URI']}/health", timeout=30).text == "OK"


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("127.0.0.1", 200), ("192.168.1.9", 403)])
def test_mlflow_answers_to_the_names_of_this_machine_only(stack, host, status):
    url = f"http://127.0.0.1:{stack.port['MLFLOW']}/api/2.0/mlflow/experiments/get-by-name"
    asked = httpx.get(
        url, params={"experiment_name": "Default"}, headers={"Host": f"{host}:5000"}, timeout=30
    )
    assert asked.status_code == status


def test_everything_listens_on_loopback_only(stack, second):
    listening = {}
    for process in stack.processes():
        for connection in process.net_connections("all"):
            if connection.family == socket.AF_UNIX and process.name() == "postgres":
                assert not connection.laddr, "PostgreSQL has a Unix socket"
            if connection.status == psutil.CONN_LISTEN:
                listening[connection.laddr.port] = connection.laddr.ip
    assert set(listening.values()) == {"127.0.0.1"}
    assert {int(port) for port in stack.port.values()} <= set(listening)


def test_no_password_leaves_its_file(stack, second):
    passwords = {
        path: path.read_text().strip().split(":")[4] for path in (stack.folder / "passwords").iterdir()
    }
    assert len(passwords) == 3
    lines = [
        " ".join(process.cmdline()) for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]
    ]
    files = [path for path in stack.home.rglob("*") if path.is_file() and path not in passwords]
    for password in passwords.values():
        assert not any(password in line for line in lines)
        assert not [path for path in files if password.encode() in path.read_bytes()]


def test_what_only_the_owner_may_see_is_closed_to_others(stack):
    closed = ["passwords/postgres", "passwords/prefect", "passwords/mlflow", "env"]
    assert all((stack.folder / name).stat().st_mode & 0o777 == 0o600 for name in closed)
    folders = ["passwords", "logs", "mlflow", "prefect", "pids", "postgres/data"]
    assert all((stack.folder / name).stat().st_mode & 0o777 == 0o700 for name in folders)


def test_a_database_wants_the_password_of_its_owner(stack):
    import psycopg2

    where = {"host": "127.0.0.1", "port": stack.port["POSTGRES"], "user": "prefect", "dbname": "prefect"}
    with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
        psycopg2.connect(**where, passfile=os.devnull)
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        psycopg2.connect(**where | {"dbname": "mlflow"}, passfile=str(stack.folder / "passwords" / "prefect"))


def test_mlflow_keeps_a_runs_artifact_for_a_client_that_sees_no_folder_of_it(stack):
    done = run_python(["-c", LOG_AN_ARTIFACT], stack.environment())
    assert done.returncode == 0, done.stderr
    address, text = done.stdout.splitlines()[-1].split()  # before it, MLflow prints where the run is seen
    assert address.startswith("mlflow-artifacts:/")
    assert text == "kept"
    (kept,) = (stack.folder / "mlflow" / "artifacts").rglob("note.txt")
    assert kept.read_text() == "kept"


def test_the_deployments_are_there_and_a_worker_of_their_pool_is_online(stack, second):
    deployment = stack.api("GET", "deployments/name/clusterucb/pipeline")
    pool = deployment["work_pool_name"]
    assert stack.api("GET", f"work_pools/{pool}")["type"] == "process"
    workers = stack.api("POST", f"work_pools/{pool}/workers/filter", {})
    assert [worker["status"] for worker in workers] == ["ONLINE"]


def start_run(stack: LocalStack, folder: Path, **execution: Any) -> dict[str, Any]:
    deployment = stack.api("GET", "deployments/name/clusterucb/pipeline")
    config = load_config(write_demo(folder, recipe=RECIPE).config, [])[0].model_dump(mode="json")
    wanted = {"parameters": {"config": config, "execution": execution}}
    return stack.api("POST", f"deployments/{deployment['id']}/create_flow_run", wanted)


def wait_for_state(stack: LocalStack, run: dict[str, Any], *states: str) -> dict[str, Any]:
    end = time.monotonic() + 240
    while (found := stack.api("GET", f"flow_runs/{run['id']}"))["state_type"] not in states:
        assert time.monotonic() < end, f"the run is still {found['state_name']}"
        time.sleep(1)
    return found


def test_the_worker_executes_a_run_with_the_template_of_the_pool(stack, second, tmp_path):
    run = start_run(
        stack, tmp_path, runner="trains"
    )  # no such executor: it ends as soon as the flow has begun
    found = wait_for_state(stack, run, "FAILED", "CRASHED")
    assert "execution.runner='trains'" in found["state"]["message"]


def test_after_down_no_process_is_left_and_the_data_stay(stack, second, tmp_path):
    run = start_run(stack, tmp_path)
    wait_for_state(stack, run, "RUNNING")
    done = stack.script("down")
    assert done.returncode == 0
    assert f"run {run['name']} is recorded as ended" in done.stderr  # else it would hold up the next for ever
    assert stack.processes() == []
    assert stack.pids() == {}
    assert (stack.folder / "postgres" / "data" / "PG_VERSION").exists()
    assert list((stack.folder / "mlflow" / "artifacts").rglob("note.txt"))
    again = stack.script("down")
    assert (again.returncode, "nothing was running" in again.stderr) == (0, True)


def test_down_removes_the_data_if_asked_to_and_nothing_else(stack, second):
    (stack.home / "catalog.duckdb").touch()
    done = stack.script("down", "--delete")
    assert done.returncode == 0
    assert f"removed {stack.folder}" in done.stderr
    assert not stack.folder.exists()
    assert (stack.home / "catalog.duckdb").exists()
