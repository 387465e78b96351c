"""One run at a time in a state folder: others wait for their turn and say so.

Files written: `run.lock` in the state folder. The operating system gives the lock back when its holder ends,
however it ends.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.logging.loggers import LoggingAdapter
from prefect.runtime import flow_run

from clusterucb_core.errors import CatalogBusy

LOCK = "run.lock"
POLL_S = 0.5
REPORT_EVERY_S = 60.0


@contextmanager
def turn(home: Path, *, wait: bool = True) -> Generator[None]:
    """Wait until no other run works in a state folder, and hold it until the block ends.

    The log of the flow run says what it waits for; that of this module where there is none.

    Raises:
        CatalogBusy: another run works there, and `wait` is False.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("a+", encoding="utf-8") as file:
        _wait(file, wait=wait)
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "name": flow_run.name or "a command"}, file)
        file.flush()
        yield
        file.truncate(0)


def _wait(file: IO[str], *, wait: bool) -> None:
    began, reported = time.monotonic(), float("-inf")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise CatalogBusy(
                    f"another run works in this state folder ({_holder(file)}); end it, or wait for it, and "
                    "try again; nothing was changed"
                ) from error
            now = time.monotonic()
            if now - reported >= REPORT_EVERY_S:
                reported = now
                _logger().warning(
                    "another run works in this state folder (%s); waiting for %.0f s",
                    _holder(file),
                    now - began,
                )
            time.sleep(POLL_S)
            continue
        return


def _logger() -> "logging.Logger | LoggingAdapter":
    return logging.getLogger(__name__) if FlowRunContext.get() is None else get_run_logger()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    text = file.read()
    try:
        holder = json.loads(text)
    except json.JSONDecodeError:  # it has just begun or ended
        return "just now"
    return f"{holder['name']}, process {holder['pid']}"
