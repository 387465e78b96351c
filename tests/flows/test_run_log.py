"""The log of a run: JSON lines that name the run, bounded in size, without what errors quote."""

import io
import json
import logging
import os

import pytest

from flows.run_log import KEPT_RUNS, LOGS, MAX_BYTES, MAX_MESSAGE_CHARS, failures_told_by_caller, run_log

OWN = logging.getLogger("clusterucb_core.some.stage")


def lines(home, run_id="run"):
    text = (home / LOGS / f"{run_id}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_names_the_run_and_from_publication_on_the_version(tmp_path):
    with run_log(tmp_path, "run", flow_run_id="flow") as facts:
        OWN.info("%d samples, größer", 3)
        facts["selection_version"] = 7
        OWN.warning("after\npublication")
    before, after = lines(tmp_path)[1:3]
    assert (before["message"], before["level"], before["logger"]) == ("3 samples, größer", "INFO", OWN.name)
    assert {"run_id": "run", "flow_run_id": "flow"}.items() <= before.items()
    assert "selection_version" not in before
    assert before["time"].endswith("+00:00")
    assert (after["message"], after["selection_version"]) == ("after\npublication", 7)


def test_a_repeat_adds_to_the_log_and_names_its_own_flow_run(tmp_path):
    for flow_run in ("first", "second"):
        with run_log(tmp_path, "run", flow_run_id=flow_run):
            pass
    assert [line["flow_run_id"] for line in lines(tmp_path)] == ["first"] * 2 + ["second"] * 2


def test_a_failure_is_told_by_its_kind_and_not_by_its_words(tmp_path):
    with pytest.raises(ValueError, match="secret"), run_log(tmp_path, "run", flow_run_id=None):
        raise ValueError("row 3 reads: secret")
    last = lines(tmp_path)[-1]
    assert (last["level"], last["message"]) == ("ERROR", "run run ended with ValueError")
    assert "secret" not in (tmp_path / LOGS / "run.jsonl").read_text()


def test_a_traceback_stays_out_and_a_long_message_is_cut(tmp_path):
    with run_log(tmp_path, "run", flow_run_id=None):
        try:
            raise ValueError("quoted row")
        except ValueError:
            OWN.warning("x" * 10_000, exc_info=True)
    found = lines(tmp_path)[1]
    assert found["message"] == "x" * MAX_MESSAGE_CHARS
    assert "quoted row" not in json.dumps(lines(tmp_path))


def test_the_log_of_a_run_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.run_log.MAX_BYTES", 4096)
    with run_log(tmp_path, "run", flow_run_id=None):
        for number in range(200):
            OWN.info("line %d", number)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / LOGS).iterdir()}
    assert set(sizes) == {"run.jsonl", "run.jsonl.1"}
    assert max(sizes.values()) <= 4096 < MAX_BYTES
    assert lines(tmp_path)[-1]["message"] == "run run is complete"


def test_the_logs_of_the_oldest_runs_are_deleted(tmp_path):
    (tmp_path / LOGS).mkdir()
    for number in range(KEPT_RUNS + 2):
        path = tmp_path / LOGS / f"{number}.jsonl"
        path.write_text("{}\n")
        path.with_name(f"{path.name}.1").write_text("{}\n")
        os.utime(path, (number, number))
    with run_log(tmp_path, "run", flow_run_id=None):
        pass
    left = {path.name for path in (tmp_path / LOGS).iterdir()}
    assert not {"0.jsonl", "0.jsonl.1", "1.jsonl", "1.jsonl.1"} & left
    assert {"2.jsonl", "2.jsonl.1", "run.jsonl"} <= left


def test_loggers_are_as_they_were_after_a_run(tmp_path):
    names = ("clusterucb_core", "flows", "tasks")
    before = [(logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in names]
    with run_log(tmp_path, "run", flow_run_id=None):
        assert logging.getLogger("tasks").level == logging.INFO
    assert [(logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in names] == before


# outside of a run Prefect has nowhere to send a line to
UNSENT = {"send_to_api": False}


def test_a_failed_run_is_told_by_its_caller_and_everything_else_by_prefect():
    from prefect.logging.handlers import PrefectConsoleHandler

    root, shown = logging.getLogger(), io.StringIO()
    console = PrefectConsoleHandler(stream=shown)
    root.addHandler(console)
    try:
        with failures_told_by_caller():
            for name in ("prefect.flow_runs", "prefect.task_runs"):
                logging.getLogger(name).error("it failed", exc_info=ValueError("why"), extra=UNSENT)
                logging.getLogger(name).warning("it waits", extra=UNSENT)
            logging.getLogger("some.library").error("a fault")
        logging.getLogger("prefect.flow_runs").error("after the block", extra=UNSENT)
    finally:
        root.removeHandler(console)
    said = shown.getvalue()
    assert "it failed" not in said
    assert "Traceback" not in said
    assert said.count("it waits") == 2
    assert "a fault" in said
    assert "after the block" in said
