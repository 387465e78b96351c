"""The log of a run as JSON lines, one file a run below `logs/` of the state folder, and as Prefect shows it.

A line holds time, level, logger, message, run and flow run, and from publication on the selection versions.
Tracebacks stay out of it: they may hold text of samples.
"""

import json
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from typing_extensions import override

from flows.home import OWN_LOGGERS

logger = logging.getLogger(__name__)

LOGS = "logs"
RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
# A run keeps a file of this size and the one before it; the logs of the oldest runs are deleted.
MAX_BYTES = 4 * 2**20
MAX_MESSAGE_CHARS = 4000
KEPT_RUNS = 100


@contextmanager
def run_log(home: Path, run_id: str, *, flow_run_id: str | None) -> Generator[dict[str, Any]]:
    """Keep the log of a run within the block.

    Args:
        home: the state folder.
        run_id: the run; a repeat adds to the same file.
        flow_run_id: its flow run.

    Yields:
        What stands on every line besides the message; the block may add to it.
    """
    folder = home / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    _delete_oldest(folder, keep=KEPT_RUNS)
    facts: dict[str, Any] = {"run_id": run_id, "flow_run_id": flow_run_id}
    file = _RunFile(folder / f"{run_id}.jsonl", maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8")
    file.setFormatter(_JsonLines(facts))
    with _listening(file), _shown_by_prefect():
        try:
            logger.info("run %s begins", run_id)
            yield facts
            logger.info("run %s is complete", run_id)
        except BaseException as error:
            # its kind only, since a message may quote what was read; whoever started the run is told the rest
            words = f"run {run_id} ended with {type(error).__name__}"
            file.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, words, (), None))
            raise


class _RunFile(RotatingFileHandler):
    """A file that may end before the run does: a disk that takes no line prints no traceback for each."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        """Leave a line out that the disk did not take; the stage that writes next tells what is wrong."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _JsonLines(logging.Formatter):
    """Makes a record one line of JSON."""

    def __init__(self, facts: dict[str, Any]):
        super().__init__()
        self.facts = facts

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:MAX_MESSAGE_CHARS],
        }
        return json.dumps(line | self.facts, ensure_ascii=False)


@contextmanager
def failures_told_by_caller() -> Generator[None]:
    """Keep Prefect's tracebacks of runs off the terminal within the block: its caller tells what went wrong.

    Prefect's API gets them all the same.
    """
    consoles = [found for found in logging.getLogger().handlers if isinstance(found, PrefectConsoleHandler)]
    for console in consoles:
        console.addFilter(_is_no_failure)
    try:
        yield
    finally:
        for console in consoles:
            console.removeFilter(_is_no_failure)


def _is_no_failure(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or not record.name.startswith(RUN_LOGGERS)


@contextmanager
def _listening(handler: logging.Handler) -> Generator[None]:
    """Give a handler everything from INFO on that our own loggers say."""
    loggers = [logging.getLogger(name) for name in OWN_LOGGERS]
    levels = [own.level for own in loggers]
    for own in loggers:
        own.addHandler(handler)
        own.setLevel(logging.INFO)
    try:
        yield
    finally:
        for own, level in zip(loggers, levels, strict=True):
            own.removeHandler(handler)
            own.setLevel(level)
        handler.close()


@contextmanager
def _shown_by_prefect() -> Generator[None]:
    """Let the UI show our own loggers, where Prefect's setting does not already.

    A worker has read that setting before any of our code ran.
    """
    handler = APILogHandler()
    handler.addFilter(lambda _: bool(FlowRunContext.get() or TaskRunContext.get()))
    loggers = [logging.getLogger(name) for name in OWN_LOGGERS]
    unheard = [own for own in loggers if not any(isinstance(h, APILogHandler) for h in own.handlers)]
    for own in unheard:
        own.addHandler(handler)
    try:
        yield
    finally:
        for own in unheard:
            own.removeHandler(handler)


def _delete_oldest(folder: Path, *, keep: int) -> None:
    logs = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in logs[keep:]:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.1").unlink(missing_ok=True)
