"""The services of the harness, on loopback: a Prefect server for every run, or the local stack to kill."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil

START_S = 240.0
LAST_WORDS = 1500
STOP_S = 30.0
LOCAL = Path(__file__).resolve().parents[2] / "infra" / "local"


@contextmanager
def prefect_server(folder: Path) -> Generator[str]:
    """Start a server; yield the address of its API; end it.

    Raises:
        RuntimeError: it ended, or did not answer in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    api, log = f"http://127.0.0.1:{port}/api", folder / "server.log"
    with log.open("wb") as words:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=_environment(folder, api),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
        )
    try:
        _wait(process, api, log)
        yield api
    finally:
        process.terminate()
        process.wait(60)


def _environment(folder: Path, api: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTHONDONT"))
    }
    return kept | {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'server.db'}",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "pages"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": api,
        "DO_NOT_TRACK": "1",
    }


def _wait(process: "subprocess.Popen[bytes]", api: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{api}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise RuntimeError(f"the Prefect server did not start: {log.read_text(errors='replace')[-LAST_WORDS:]}")


class LocalStack:
    """The local stack of `infra/local`, PostgreSQL, Prefect and MLflow, whose services can be killed."""

    SERVICES = ("postgres", "prefect", "mlflow")

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o711)  # where root starts PostgreSQL, it has a user of its own
        self.folder = home / "stack"
        self.variables = {"CLUSTERUCB_HOME": str(home)}
        kept = home / "ports.json"
        if not kept.is_file():
            kept.write_text(json.dumps(_free_ports(self.SERVICES)), "utf-8")
        for name, port in json.loads(kept.read_text("utf-8")).items():
            self.variables[f"CLUSTERUCB_{name.upper()}_PORT"] = str(port)

    @property
    def addresses(self) -> dict[str, str]:
        """What a run needs to find the services."""
        prefect, mlflow = (self.variables[f"CLUSTERUCB_{name}_PORT"] for name in ("PREFECT", "MLFLOW"))
        return {
            "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
        }

    def bring(self, direction: str) -> None:
        """Start (`up`) or stop (`down`) whatever does not run, or runs.

        Raises:
            RuntimeError: that failed.
        """
        line = [sys.executable, str(LOCAL / direction)]
        done = subprocess.run(
            line, env=os.environ | self.variables, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"infra/local/{direction} failed: {done.stderr[-LAST_WORDS:]}")

    def kill(self, name: str) -> None:
        """End a service by SIGKILL, with the processes that it has started."""
        pid = json.loads((self.folder / "pids" / f"{name}.json").read_text("utf-8"))["pid"]
        service = psutil.Process(pid)
        # of PostgreSQL its first process only: the others must see by themselves that it is gone
        below = [] if name == "postgres" else service.children(recursive=True)
        for process in (service, *below):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([service, *below], timeout=STOP_S)


@contextmanager
def local_stack(home: Path) -> Generator[LocalStack]:
    """Start the local stack and stop it at the end; its data stay.

    Raises:
        RuntimeError: it could not be started.
    """
    stack = LocalStack(home)
    try:
        stack.bring("up")
        yield stack
    finally:
        stack.bring("down")


def _free_ports(names: Sequence[str]) -> dict[str, int]:
    with ExitStack() as opened:
        probes = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: probe.getsockname()[1] for name, probe in zip(names, probes, strict=True)}
