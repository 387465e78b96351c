"""Which runs of the local stack are recorded as ended: those of its own workers that have no process."""

from types import SimpleNamespace

import httpx
import pytest
from stack import runs
from stack.layout import DEFAULT_PORTS, Stack


def flow_run(name, state="RUNNING", worker="local"):
    return {"id": f"id-{name}", "name": name, "state_type": state, "labels": {"prefect.worker.name": worker}}


@pytest.fixture
def ended(monkeypatch, tmp_path):
    """Return a function that gives the server some runs and tells which end in which state."""

    def end(*known, alive=()):
        sent = {}

        def call(_stack, _method, path, body):
            sent[path.split("/")[1]] = body["state"]["type"]
            return httpx.Response(201, json={})

        processes = [SimpleNamespace(environ=lambda run=run: {"PREFECT__FLOW_RUN_ID": run}) for run in alive]
        monkeypatch.setattr(runs, "find", lambda *_, **__: list(known))
        monkeypatch.setattr(runs, "call", call)
        monkeypatch.setattr(runs, "started_by", lambda *_: processes)
        stack = Stack(checkout=tmp_path, home=tmp_path, ports=DEFAULT_PORTS)
        return runs.end_lost_runs(stack, "pool", service="worker-pool"), sent

    return end


def test_a_run_without_a_process_is_recorded_as_crashed(ended):
    assert ended(flow_run("a"), flow_run("b", "PENDING")) == (
        ["a", "b"],
        {"id-a": "CRASHED", "id-b": "CRASHED"},
    )


def test_a_run_that_was_being_cancelled_is_recorded_as_cancelled(ended):
    assert ended(flow_run("a", "CANCELLING")) == (["a"], {"id-a": "CANCELLED"})


def test_a_run_that_goes_on_without_its_worker_is_left_alone(ended):
    assert ended(flow_run("a"), flow_run("b"), alive=["id-a"]) == (["b"], {"id-b": "CRASHED"})


def test_a_run_of_somebody_elses_worker_is_left_alone(ended):
    other = flow_run("b") | {"labels": {}}
    assert ended(flow_run("a", worker="laptop"), other) == ([], {})
