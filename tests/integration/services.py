"""A Prefect server and a worker as processes: on loopback, with files of their own, ended by their pid."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 120
STOP_SECONDS = 30
OURS = ("PREFECT_", "MLFLOW_", "CLUSTERUCB_HOME", "CLUSTERUCB_CHECKOUT")
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class PrefectServer:
    """A running server.

    Attributes:
        api: the address of its API.
        home: the folder of its own files.
    """

    api: str
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to work with this server, and with nothing of the user's own settings."""
        return clean_environment(PREFECT_API_URL=self.api)

    def call(self, method: str, path: str, **body: Any) -> httpx.Response:
        """Call the API and return its answer, whatever its status."""
        return httpx.request(method, f"{self.api}/{path}", json=body, timeout=60)

    def find(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        """Return the records of a kind (`flow_runs`, `task_runs`, `artifacts`) that match, at most 200."""
        return self.call("POST", f"{kind}/filter", **filters, limit=200).raise_for_status().json()

    def command(self, *words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Prefect's command line."""
        return subprocess.run(
            [sys.executable, "-m", "prefect", *words],
            cwd=folder,
            env={**self.environment, "PREFECT_HOME": str(self.home), **variables},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@contextlib.contextmanager
def prefect_server(folder: Path, **variables: str) -> Iterator[PrefectServer]:
    """Start a Prefect server with its home and its SQLite file in a folder; stop it at the end.

    Args:
        folder: of its files.
        variables: settings besides.

    Raises:
        RuntimeError: it ended or was not healthy in time; the message has the end of its log.
    """
    api = f"http://127.0.0.1:{(port := free_port())}/api"
    environment = clean_environment(
        PREFECT_HOME=str(folder),
        PREFECT_SERVER_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{folder / 'server.db'}",
        PREFECT_SERVER_UI_STATIC_DIRECTORY=str(folder / "pages"),
        PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="10",  # six times as often as by default
        PREFECT_API_URL=api,
        **variables,
    )
    line = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with background(line, environment, log=folder / "server.log") as server:
        _wait_until(lambda: answers(f"{api}/health"), server, folder / "server.log")
        yield PrefectServer(api=api, home=folder)


@contextlib.contextmanager
def prefect_worker(server: PrefectServer, pool: str, folder: Path, **variables: str) -> Iterator[None]:
    """Start a process worker on a work pool, with variables that its runs get too; stop it at the end.

    Raises:
        RuntimeError: it ended or was not online in time; the message has the end of its log.
    """
    files = {"PREFECT_HOME": str(folder), "PREFECT_WORKER_QUERY_SECONDS": "3"}
    line = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", "worker"]
    with background(line, {**server.environment, **files, **variables}, log=folder / "worker.log") as worker:
        _wait_until(lambda: _online(server, pool), worker, folder / "worker.log")
        yield


@contextlib.contextmanager
def background(
    line: list[str], environment: Mapping[str, str], *, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python module as a process with its output in a log; stop it and what it started at the end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *line],
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process)


def clean_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without settings of the services, and with the given ones."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, **QUIET, **variables}


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(found: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """Return what a function finds, once it finds something.

    Raises:
        TimeoutError: it found nothing in time.
    """
    end = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.5)
    return value


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    def settled() -> bool:
        return process.poll() is not None or ready()

    with contextlib.suppress(TimeoutError):
        wait_for(settled, seconds=START_SECONDS, what="start")
        if process.poll() is None:
            return
    raise RuntimeError(f"{log.name} (exit code {process.poll()}): {log.read_text(errors='replace')[-2000:]}")


def answers(address: str) -> bool:
    """Tell whether a server answers with success."""
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.TransportError:
        return False


def _online(server: PrefectServer, pool: str) -> bool:
    answer = server.call("POST", f"work_pools/{pool}/workers/filter")
    return answer.is_success and any(worker["status"] == "ONLINE" for worker in answer.json())


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # the session is the process's own: this reaches nothing but what it started and left behind
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
