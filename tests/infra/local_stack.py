"""The local stack in a folder of its own, driven from outside: by its two scripts and its `env` file."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from stack.errors import StackError
from stack.postgres import find_programs
from stack.processes import MARK

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "infra" / "local"
PORTS = ("PREFECT", "MLFLOW", "POSTGRES")


class LocalStack:
    """A stack in a folder of its own, used through its two scripts and its `env` file only."""

    def __init__(self, home: Path) -> None:
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.home = home
        self.folder = home / "stack"
        self.port = {name: str(port) for name, port in ports.items()}
        self.printed = ""

    def script(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        ports = {f"CLUSTERUCB_{service}_PORT": port for service, port in self.port.items()}
        return run_python(
            [str(SCRIPTS / name), *words], {**os.environ, **ports, "CLUSTERUCB_HOME": str(self.home)}
        )

    def environment(self) -> dict[str, str]:
        """Return the variables of a shell that has read the `env` file."""
        line = ["/bin/sh", "-c", f'. "{self.folder / "env"}" && exec env -0']
        text = subprocess.run(line, capture_output=True, text=True, check=True).stdout
        return dict(part.split("=", 1) for part in text.split("\0") if part)

    def api(self, method: str, path: str, body: Any = None) -> Any:
        address = f"{self.environment()['PREFECT_API_URL']}/{path}"
        return httpx.request(method, address, json=body, timeout=60).raise_for_status().json()

    def pids(self) -> dict[str, int]:
        files = (self.folder / "pids").glob("*.json")
        return {path.stem: json.loads(path.read_text())["pid"] for path in files}

    def processes(self) -> list[psutil.Process]:
        """Return all processes that were started by the stack, however far down."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if str(self.folder) in process.environ().get(MARK, "") and process.status() != "zombie":
                    found.append(process)
        return found


def run_python(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=900, check=False)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        probes = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def running_stack() -> Iterator[LocalStack]:
    """Start a stack, and remove it at the end; skip where PostgreSQL's programs are not installed."""
    try:
        find_programs(None)
    except StackError as error:
        pytest.skip(str(error))
    # not below pytest's own folder: where root starts it, PostgreSQL has another user, who cannot enter that
    home = Path(tempfile.mkdtemp(prefix="stack-"))
    home.chmod(0o711)
    made = LocalStack(home)
    try:
        started = made.script("up")
        assert started.returncode == 0, started.stderr
        made.printed = started.stdout
        yield made
    finally:
        made.script("down", "--delete")
        shutil.rmtree(home)
