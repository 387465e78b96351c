"""A Prefect server on loopback that serves every run of the harness, with its files in a folder."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx

START_S = 240.0
LAST_WORDS = 1500


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
