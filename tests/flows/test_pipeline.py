"""A run in this process whose Prefect server goes away: what it came to is given where it is there."""

from contextlib import nullcontext

import httpx
import pytest

from flows import pipeline

API = "http://127.0.0.1:4200/api"


@pytest.fixture
def away(monkeypatch):
    """A flow that cannot tell its server that it has ended; yields what is found before and after it."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    results = []

    def flow(*_):
        raise httpx.ConnectError("refused", request=httpx.Request("POST", f"{API}/flow_runs/1/set_state"))

    monkeypatch.setattr(pipeline, "plan_run", lambda *_, **__: "plan")
    monkeypatch.setattr(pipeline, "finished_result", lambda _: results.pop(0))
    monkeypatch.setattr(pipeline, "called_here", lambda _: nullcontext())
    monkeypatch.setattr(pipeline, "clusterucb", flow)
    with temporary_settings({PREFECT_API_URL: API}):
        yield results


def test_a_run_that_is_complete_is_given_though_its_server_was_not_told(away, caplog):
    away += [None, "the result"]
    assert pipeline.run_pipeline(None, None) == "the result"
    assert "the run is complete, but its page is not: the Prefect server" in caplog.text


def test_a_run_that_is_not_complete_fails(away):
    away += [None, None]
    with pytest.raises(httpx.ConnectError):
        pipeline.run_pipeline(None, None)


def test_no_other_error_is_passed_over(away, monkeypatch):
    def flow(*_):
        raise ValueError("a row")

    away += [None, "the result"]
    monkeypatch.setattr(pipeline, "clusterucb", flow)
    with pytest.raises(ValueError, match="a row"):
        pipeline.run_pipeline(None, None)
