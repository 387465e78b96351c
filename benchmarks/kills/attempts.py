"""Runs of the command line as processes that can be watched and killed; writes their logs."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PROJECT = Path(__file__).resolve().parents[2]
FORGE = Path(__file__).with_name("forge.py")
HOOK = Path(__file__).with_name("hook")
# of a process that Python's pools have started, and the title of one that Ray has
POOL_MARK, RAY_MARK = "--multiprocessing-fork", "ray::"
# Ray's agents give up a minute after they have lost Ray's server
END_S = 90.0
LAST_WORDS = 1500


@dataclass
class Forge:
    """A process that starts runs in one state folder, one at a time."""

    process: "subprocess.Popen[str]"
    home: Path
    log: Path

    def start(self, arguments: Sequence[str]) -> "Attempt":
        """Start a run."""
        assert self.process.stdin is not None, "orders go through a pipe"
        print(
            json.dumps({"arguments": list(arguments), "log": str(self.log)}),
            file=self.process.stdin,
            flush=True,
        )
        pid = int(self._answer()["pid"])
        return Attempt(self, psutil.Process(pid), time.monotonic())

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None, "answers come through a pipe"
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that starts runs has ended; its words: {self.words('forge')}")
        return json.loads(line)

    def code(self) -> int | None:
        """Return the exit code of the run that was started last, None while it runs."""
        ready, _, _ = select.select([self.process.stdout], [], [], 0)
        return int(self._answer()["code"]) if ready else None

    def words(self, name: str = "err") -> str:
        """Return the end of what a run has said."""
        path = Path(f"{self.log}.{name}")
        return path.read_text("utf-8", errors="replace")[-LAST_WORDS:] if path.is_file() else ""


@dataclass
class Attempt:
    """A run that was started, the processes that were seen below it, and how many of its own were killed."""

    forge: Forge
    process: psutil.Process
    started_at: float
    code: int | None = None
    begun_at: float | None = None
    strikes: int = 0
    seen: set[psutil.Process] = field(default_factory=set[psutil.Process])

    def alive(self) -> bool:
        """Return whether the run goes on; notes when it began to work, and what it has started."""
        if self.code is None:
            self.code = self.forge.code()
        if self.code is None and self.begun_at is None and _holder(self.forge.home) == self.process.pid:
            self.begun_at = time.monotonic()
        return self.code is None

    def look(self) -> set[psutil.Process]:
        """Return the processes below the run, and remember them."""
        with suppress(psutil.NoSuchProcess):
            self.seen |= set(self.process.children(recursive=True))
        return {process for process in self.seen if process.is_running()}

    def workers(self) -> list[psutil.Process]:
        """Return the processes that compute shards for the run."""
        return [process for process in self.look() if _is_worker(process)]

    def kill(self) -> None:
        """End the run by SIGKILL, and nothing that it has started."""
        self.look()
        self.process.send_signal(signal.SIGKILL)
        self.wait(END_S)

    def wait(self, seconds: float) -> int | None:
        """Return the exit code once there is one, None where that takes longer."""
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.code

    def left_running(self) -> list[str]:
        """Return what has outlived the run; it is ended."""
        _, alive = psutil.wait_procs(list(self.seen), timeout=END_S)
        found: list[str] = []
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.name()}: {' '.join(process.cmdline())[:120]}")
                    process.kill()
        return found


@contextmanager
def forge(home: Path, log: Path, variables: Mapping[str, str]) -> Generator[Forge]:
    """Start a process that starts runs in a state folder; it and what it started end with the block.

    Raises:
        RuntimeError: it could not be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{log}.forge").open("w") as words:
        process = subprocess.Popen(
            [sys.executable, str(FORGE)],
            cwd=log.parent,
            env={**_environment(), "CLUSTERUCB_HOME": str(home), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
        )
    made = Forge(process, home, log)
    try:
        assert made._answer() == {"ready": True}
        yield made
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _environment() -> dict[str, str]:
    """Return this environment without settings of the services, with the hook and the project on the path."""
    ours = ("PREFECT_", "MLFLOW_", "CLUSTERUCB_HOME", "KILLS_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(HOOK), str(PROJECT)]),
        "OMP_NUM_THREADS": "1",  # a second thread could round another way, and two cores are few
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _holder(home: Path) -> int | None:
    """Return the process that says in the lock file that it works in a state folder."""
    with suppress(OSError, ValueError):
        return int(json.loads((home / "run.lock").read_text("utf-8"))["pid"])
    return None


def _is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.name().startswith(RAY_MARK) or POOL_MARK in process.cmdline()
    return False
