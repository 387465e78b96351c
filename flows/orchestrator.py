"""The Prefect server that a run reports to: asked before the run, told of plainly, left in bounded time.

Reads environment variables, and the database of a server that a run starts for itself.
"""

import logging
import math
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Generator, Sized
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib import import_module
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from clusterucb_core.errors import ServerUnavailable, causes
from clusterucb_core.masking import masked_address
from clusterucb_core.storage_faults import check_writable
from flows import own_server
from flows.health import ask_health

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
# A server process that ends at once is started again by Prefect without end, on another port.
OWN_SERVER_STARTS = 3
# How long a process that ends waits for a server that takes nothing of what is still to be sent.
LEAVE_SECONDS = 20.0
INTERRUPTED_SECONDS = 3.0  # where the run was interrupted
POLL_S = 0.2
OWN = "the Prefect server of the run's own"
DATABASE = "prefect.db"
SENDERS = ("prefect._internal.concurrency", "prefect.events.clients")


def check_server(home: Path) -> None:
    """Check that the Prefect server that is named answers, or that a run can start its own.

    Args:
        home: the state folder.

    Raises:
        ServerUnavailable: it does not, or its database is damaged.
        StorageNotWritable: the folder of an own server cannot be written.
    """
    address = os.environ.get("PREFECT_API_URL", "")
    if address:
        _ask(address)
        return
    folder = Path(os.environ.get("PREFECT_HOME") or home / "prefect")
    if folder.is_relative_to(home):
        check_writable(home, "CLUSTERUCB_HOME")
    check_writable(folder, "PREFECT_HOME")
    if not os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        _open_database(folder / DATABASE)


def start_own_server() -> None:
    """Start the server of a run's own, where none is named; Prefect takes it as the one that it would start.

    A process that was killed, or had no room, while it made the server's database leaves one that no server
    can use: such a one is set aside, since it holds the history of flow runs and nothing else.

    Raises:
        ServerUnavailable: it ends again and again, or does not answer in time.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    try:
        _start()
    except ServerUnavailable as error:
        database = settings.home / DATABASE
        if os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL") or not _is_left(database):
            raise
        aside = database.with_name(f"{DATABASE}.unusable-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        logger.warning("%s; its database is set aside as %s, and a new one is begun", error, aside)
        for path in sorted(database.parent.glob(f"{DATABASE}*")):
            if path.name in {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"}:
                path.replace(path.with_name(path.name.replace(DATABASE, aside.name, 1)))
        _start()


def _is_left(database: Path) -> bool:
    """Return whether there is a database that no process has open."""
    if not database.is_file():
        return False
    every = (_open_files(process) for process in psutil.process_iter())
    return not any(str(database) in files for files in every)


def _open_files(process: psutil.Process) -> set[str]:
    try:
        return {file.path for file in process.open_files()}
    except psutil.Error:  # it has ended, or is another user's
        return set()


def _start() -> None:
    from prefect.server.api.server import SubprocessASGIServer

    server: Any = SubprocessASGIServer()
    if server.running:
        return
    start, starts = server._run_uvicorn_command, count(1)

    def start_again() -> Any:
        if next(starts) > OWN_SERVER_STARTS:
            raise ServerUnavailable(_not_started(f"it ended {OWN_SERVER_STARTS} times at its start"))
        with _started_apart():
            return start()

    server._run_uvicorn_command = start_again
    try:
        server.start()
    except ServerUnavailable:
        server.stop()
        raise
    except RuntimeError as error:
        server.stop()
        raise ServerUnavailable(_not_started(str(error))) from error


@contextmanager
def _started_apart() -> Generator[None]:
    """Let the server's process that is started in the block have a group of its own, and end with this one.

    Ctrl-C at a terminal ends every process of the run's group; the server is still to be told how the run
    ended. Where the run is killed, nobody else ends it.
    """
    server: Any = import_module("prefect.server.api.server")

    def started(args: list[str], **given: Any) -> subprocess.Popen[Any]:
        python, *module = args
        assert module[:2] == ["-m", "uvicorn"], "Prefect starts its server in another way"
        line = [python, "-P", own_server.__file__, str(os.getpid()), *module[2:]]
        return subprocess.Popen(line, process_group=0, **given)  # noqa: S603

    names = {name: getattr(subprocess, name) for name in subprocess.__all__} | {"Popen": started}
    server.subprocess = SimpleNamespace(**names)
    try:
        yield
    finally:
        server.subprocess = subprocess


def server_fault(error: BaseException) -> ServerUnavailable | None:
    """Return what an error tells of a Prefect server that is away, as a sentence; None where it does not."""
    if "prefect" not in sys.modules:
        return None
    address = _address()
    reason = next((found for part in causes(error) if (found := _reason(part, address))), None)
    if reason is None:
        return None
    if os.environ.get("PREFECT_API_URL"):
        where = f"the Prefect server at {masked_address(address)}"
        what_to_do = "start it or correct PREFECT_API_URL, or unset it to use a server of the run's own"
    else:
        where, what_to_do = f"{OWN} at {address}", "see whether the machine has memory and disk left"
    return ServerUnavailable(
        f"{where} was away or did not answer ({reason}); {what_to_do}, and give the same command again, "
        "which goes on from what was computed"
    )


@contextmanager
def served() -> Generator[None]:
    """Run flows in the block and leave their server after it; what it did not take is told of once.

    Prefect tells of every record that it could not send by a line with all of it.
    """
    lost: list[logging.LogRecord] = []

    def kept_back(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            lost.append(record)
        return record.levelno < logging.WARNING

    senders = [logging.getLogger(name) for name in SENDERS]
    for sender in senders:
        sender.addFilter(kept_back)
    seconds = LEAVE_SECONDS
    try:
        yield
    except Exception:
        raise
    except BaseException:
        seconds = INTERRUPTED_SECONDS
        raise
    finally:
        if not leave_server(seconds, lost) or lost:
            logger.warning("the Prefect server did not take all that the run told it: its page has gaps")
        for sender in senders:
            sender.removeFilter(kept_back)


def leave_server(seconds: float = LEAVE_SECONDS, lost: Sized = ()) -> bool:
    """Wait until what Prefect still has to send is sent; where nothing is for so long, forget the rest.

    Prefect itself waits at the end of a process for as long as its server is away: it tries each event on
    its own, for seconds, and takes the next.

    Args:
        seconds: how long to wait since something was sent.
        lost: grows with everything that could not be sent.

    Returns:
        Whether all is sent, or was given up before.
    """
    from prefect._internal.concurrency.services import (
        _active_services,  # pyright: ignore[reportPrivateUsage]
    )

    every: list[Any] = list(_active_services)
    services = [found for found in every if found._started]
    for service in services:
        service._stop(at_exit=True)
    pending = [service for service in services if not service._done_event.is_set()]
    fewest, since = math.inf, time.monotonic()
    while pending and time.monotonic() - since < seconds:
        time.sleep(POLL_S)
        pending = [service for service in pending if not service._done_event.is_set()]
        unsent = sum(service._queue.qsize() for service in pending) + len(lost)
        if unsent < fewest:
            fewest, since = unsent, time.monotonic()
    for service in pending:
        service._loop.call_soon_threadsafe(service._done_event.set)
    return not pending


def _ask(address: str) -> None:
    import httpx

    try:
        answer = ask_health(address, seconds=ANSWER_SECONDS)
        if answer.status_code < 500:  # it is there; whom it lets in is for Prefect to find out
            return
        reason = f"it answers {answer.status_code} {answer.reason_phrase}"
    except (httpx.TransportError, httpx.InvalidURL) as error:
        if any(isinstance(part, ssl.SSLError) for part in causes(error)):
            return  # Prefect may have certificates of its own
        reason = str(error)
    raise ServerUnavailable(
        f"the Prefect server at {masked_address(address)} does not answer ({reason}); start it or correct "
        "PREFECT_API_URL, or unset it to use a server of the run's own"
    )


def _open_database(path: Path) -> None:
    import sqlite3

    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1)) as con:
            con.execute("SELECT count(*) FROM sqlite_master").fetchone()
            con.execute("BEGIN IMMEDIATE")
            con.rollback()
    except sqlite3.Error as error:
        if "locked" in str(error):  # by the server of another run
            return
        raise ServerUnavailable(
            f"{path} cannot be used ({error}); {OWN} keeps its history there, and nothing else: move the "
            "file away and give the same command again"
        ) from error


def _not_started(reason: str) -> str:
    return f"{OWN} could not be started ({reason}); see what it says above, or set PREFECT_API_URL to another"


def _address() -> str:
    from prefect.settings import PREFECT_API_URL

    if named := PREFECT_API_URL.value():
        return str(named)
    from prefect.server.api.server import SubprocessASGIServer

    return SubprocessASGIServer().api_url


def _reason(error: BaseException, address: str) -> str | None:
    """Return why a request to the server failed, where that is what an error tells of."""
    import httpx

    if not isinstance(error, httpx.TransportError | httpx.HTTPStatusError):
        return None
    # an error that never had a request has none to ask for
    request = getattr(error, "_request", None)
    if request is not None and not str(request.url).startswith(address.rstrip("/")):
        return None
    if isinstance(error, httpx.TransportError):
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    code = error.response.status_code
    return f"it answers {code}" if code >= 500 or code in {408, 429} else None
