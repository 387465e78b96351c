"""MLflow down, failing, hanging or back again: no record is lost or sent twice, and no run held up."""

import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from clusterucb_core.comparison import CHART, REPLAYS, TABLE, ComparisonResult
from clusterucb_core.config import load_config
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.errors import TrackingUnavailable
from clusterucb_core.lineage import TrackedAdapter
from clusterucb_core.lm.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from clusterucb_core.planning import plan_run
from clusterucb_core.stages.comparison_summary import SettingSummary
from clusterucb_core.stages.summary import Work
from clusterucb_core.store import PoolVersion
from clusterucb_core.tracks import Metric, RunFigures
from tasks.tracking import (
    BUFFER,
    RUN_TAG,
    Record,
    Tracking,
    finish_comparison_tracking,
    start_comparison_tracking,
)
from tasks.tracking.buffer import REFUSED, flush_records, keep_record

RECIPE = TinyModelRecipe(
    vocabulary=300, tokenizer_texts=60, hidden=16, layers=1, heads=2, steps=1, batch_samples=4
)
POOL = PoolVersion(
    pool_version=1, parent_version=None, n_samples=60, n_added=60, n_removed=0, n_quarantined=0, digest="ab",
    created=True,
)  # fmt: skip
FIGURES = RunFigures(pool=POOL, work=Work(gradient_evaluations=42, trainings=2), seconds=12.5, stages=())


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture
def plan_of(demo, tmp_path, monkeypatch):
    """Plan a comparison whose state folder is this test's; nothing links it to a flow run."""
    monkeypatch.setattr("tasks.tracking.runs._link", lambda *_: None)
    return lambda *overrides: plan_run(*load_config(demo, overrides), home=tmp_path / "home")


@pytest.fixture
def compared(tmp_path):
    for name in (TABLE, REPLAYS, CHART):
        (tmp_path / name).write_bytes(b"a,b\n")
    line = SettingSummary(target="sums", policy="full", budget_fraction=None, captured_influence=1.0)
    return ComparisonResult(
        run_id="run", targets=("sums",), mode="dynamic", n_samples=20, periods=(2,), seeds=2,
        audit_fraction=0.0, settings=(line,), folder=str(tmp_path), mlflow_run_id=None, seconds=1.0,
        work=Work(gradient_evaluations=60, trainings=3),
    )  # fmt: skip


@pytest.fixture
def impatient(monkeypatch):
    """Two attempts of a second each."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")


@contextlib.contextmanager
def serving(answer):
    """A server that gives each connection to a function; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        ended, kept = threading.Event(), []

        def take():
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    kept.append(listening.accept()[0])
                    answer(kept[-1])

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()
            for taken in kept:
                taken.close()


def hang(_):
    """Keep a connection open without a word."""


def fail(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 500 Failed\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
    connection.close()


@pytest.fixture
def down():
    """The address of an MLflow that nobody serves."""
    with socket.socket() as taken:  # bound and not listening: refuses, and nobody else can get the port
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def go(address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)


def buffered(plan):
    folder = Path(plan.workspace.home) / BUFFER
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def runs_of(address, run_id):
    client = MlflowClient(address)
    experiments = [found.experiment_id for found in client.search_experiments()]
    return client.search_runs(experiments, filter_string=f"tags.`{RUN_TAG}` = '{run_id}'")


@pytest.mark.parametrize("answer", [hang, fail])
def test_an_mlflow_that_hangs_or_fails_costs_a_run_what_was_set_and_no_record(
    answer, impatient, plan_of, compared, monkeypatch, caplog
):
    plan = plan_of()
    began = time.monotonic()
    with serving(answer) as address:
        go(address, monkeypatch)
        tracking = start_comparison_tracking.fn(plan, "flow-0", None)
        finish_comparison_tracking.fn(plan, tracking, compared, FIGURES)
    assert time.monotonic() - began < 15
    assert f"MLflow at {address} did not take this run" in caplog.text
    assert buffered(plan) == [f"{plan.run_id}.json"]


@pytest.mark.parametrize("answer", [hang, fail])
def test_a_run_that_must_be_tracked_stops_at_an_mlflow_that_hangs_or_fails(
    answer, impatient, plan_of, monkeypatch
):
    plan = plan_of("execution.when_tracking_is_down=fail")
    with serving(answer) as address:
        go(address, monkeypatch)
        with pytest.raises(TrackingUnavailable, match=f"^MLflow at {address} did not take this run"):
            start_comparison_tracking.fn(plan, "flow-0", None)
    assert buffered(plan) == []


def test_a_host_that_nobody_knows_is_an_mlflow_that_is_down(impatient, plan_of, monkeypatch, caplog):
    go("http://no-such-host.invalid:5000", monkeypatch)
    assert start_comparison_tracking.fn(plan_of(), None, None).mlflow_run_id is None
    assert "MLflow at http://no-such-host.invalid:5000 did not take this run" in caplog.text


def test_an_mlflow_that_came_back_during_a_run_has_its_record_at_the_end(
    up, down, impatient, plan_of, compared, monkeypatch
):
    plan = plan_of()
    go(down, monkeypatch)
    tracking = start_comparison_tracking.fn(plan, "flow-0", None)
    go(up, monkeypatch)
    finish_comparison_tracking.fn(plan, tracking, compared, FIGURES)
    assert [run.info.status for run in runs_of(up, plan.run_id)] == ["FINISHED"]
    assert buffered(plan) == []


def test_no_address_of_a_report_is_asked_of_an_mlflow_that_is_gone(
    down, impatient, plan_of, monkeypatch, tmp_path
):
    from tasks.tracking import runs

    plan = plan_of()
    tracking = Tracking(mlflow_run_id="opened before", tags={RUN_TAG: plan.run_id})
    go(down, monkeypatch)
    record = Record(tags=tracking.tags, parameters={}, metrics=(), files={})
    assert not runs._finish(plan, tracking, record)
    assert buffered(plan) == [f"{plan.run_id}.json"]


class Killed(BaseException):
    """The process of a sender was killed."""


@pytest.fixture
def full_record(tmp_path):
    """A record with something of everything."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        (folder / name).write_text("{}")
    tags = {RUN_TAG: "run", "clusterucb.target": "sums"}
    adapter = TrackedAdapter(
        model="clusterucb-sums", place="adapter", folder=str(folder), tags=tags, test_loss=1.5,
        test_digest="rows",
    )  # fmt: skip
    nested = Record(tags={RUN_TAG: "nested"}, parameters={"a": "1"}, metrics=(), files={}, name="nested")
    return Record(
        tags=tags,
        parameters={"seed": "0"},
        metrics=tuple(
            Metric(key="loss", value=1 / (step + 1), step=step, timestamp_ms=step) for step in range(20)
        ),
        files={"config.yaml": "seed: 0"},
        adapters=(adapter,),
        nested=(nested,),
    )


@pytest.mark.parametrize(
    "step",
    [
        "tasks.tracking.sending._send_files",
        "mlflow.MlflowClient.set_terminated",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "mlflow.MlflowClient.create_run",
                "tasks.tracking.sending._send_datasets",
                "mlflow.MlflowClient.create_model_version",
                "mlflow.MlflowClient.set_registered_model_alias",
                "pathlib.Path.unlink",
            )
        ),
    ],
)
def test_a_record_whose_sender_was_killed_on_the_way_is_sent_whole_and_once(
    step, up, full_record, tmp_path, monkeypatch
):
    def die(*_, **__):
        raise Killed

    keep_record(full_record, "run", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(step, die)
        with pytest.raises(Killed):
            flush_records(str(tmp_path))
    assert (tmp_path / BUFFER / "run.json").is_file()
    flush_records(str(tmp_path))
    assert list((tmp_path / BUFFER).iterdir()) == []
    client = MlflowClient(up)
    (run,), (nested,) = runs_of(up, "run"), runs_of(up, "nested")
    assert (run.info.status, nested.info.status) == ("FINISHED", "FINISHED")
    assert run.data.params == {"seed": "0"}
    sent = [(item.step, item.value) for item in client.get_metric_history(run.info.run_id, "loss")]
    assert sent == [(step, 1 / (step + 1)) for step in range(20)]
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"config.yaml", "adapter"}
    assert len(client.search_model_versions("name = 'clusterucb-sums'")) == 1
    assert client.get_model_version_by_alias("clusterucb-sums", "best").run_id == run.info.run_id


def test_a_record_that_can_never_be_sent_is_set_aside_and_the_others_are_sent(
    up, full_record, tmp_path, caplog
):
    keep_record(full_record, "run", str(tmp_path))
    whole = (tmp_path / BUFFER / "run.json").read_bytes()
    (tmp_path / BUFFER / "0-cut.json").write_bytes(whole[: len(whole) // 2])
    (tmp_path / BUFFER / "1-binary.json").write_bytes(b"\xff\xfe\x00")
    changed = {"parameters": {"a" * 300: "1"}, "tags": {RUN_TAG: "another"}}
    (tmp_path / BUFFER / "2-refused.json").write_text(json.dumps(json.loads(whole) | changed))
    flush_records(str(tmp_path))
    assert [run.info.status for run in runs_of(up, "run")] == ["FINISHED"]
    aside = {path.name for path in (tmp_path / BUFFER / REFUSED).iterdir()}
    assert aside == {"0-cut.json", "1-binary.json", "2-refused.json"}
    assert [path.name for path in (tmp_path / BUFFER).iterdir()] == [REFUSED]
    assert "it is damaged" in caplog.text
    assert "MLflow refuses what is in it" in caplog.text
    flush_records(str(tmp_path))
