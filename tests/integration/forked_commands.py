"""Commands of `clusterucb`, each in a process of its own that is forked from one with the imports done.

As a script it is that process: it reads a request a line and answers each with a line. What a command imports
takes longer than a small run; a fork has Torch and the core, and imports Prefect with settings of its own.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMPORTED = (
    "mlflow", "transformers.trainer", "peft", "sklearn.cluster", "lm_eval", "clusterucb_core.erasure",
    "clusterucb_core.estimate", "clusterucb_core.garbage", "clusterucb_core.outcome",
    "clusterucb_core.report", "clusterucb_core.reselection",
)  # fmt: skip
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Command:
    """A command that was started."""

    ask: Callable[..., dict[str, Any]]
    pid: int
    folder: Path

    def wait(self, seconds: float = 240) -> int:
        """Return its exit code; a signal is its negative number.

        Raises:
            TimeoutError: it did not end in time.
        """
        end = time.monotonic() + seconds
        while (code := self.ask(poll=self.pid)["code"]) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} did not end in {seconds} s:\n{self.err[-3000:]}")
            time.sleep(0.1)
        return code

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text("utf-8", "replace")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text("utf-8", "replace")


@dataclass(frozen=True)
class Commands:
    """What starts commands."""

    process: subprocess.Popen[str]
    folder: Path

    def start(self, *arguments: object, **environment: str) -> Command:
        """Start a command with the variables given and nothing of the services' settings besides."""
        folder = self.folder / f"{time.monotonic_ns()}"
        folder.mkdir()
        pid = self.ask(
            arguments=[str(argument) for argument in arguments], environment=environment, folder=str(folder)
        )["pid"]
        return Command(self.ask, pid, folder)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextlib.contextmanager
def forked_commands(folder: Path, environment: dict[str, str]) -> Iterator[Commands]:
    """Start the process that commands are forked from; it ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, __file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, env=environment | THREADS, cwd=folder, **pipes) as process:
        commands = Commands(process, folder)
        commands.ask(ready=True)
        try:
            yield commands
        finally:
            assert process.stdin
            process.stdin.close()


def serve() -> list[str] | None:
    """Answer requests until there are no more; in a forked process, return the arguments of its command."""
    for line in sys.stdin:
        request, answer = json.loads(line), {}
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        elif "arguments" in request:
            answer["pid"] = os.fork()
            if answer["pid"] == 0:
                become(request["folder"], request["environment"])
                return request["arguments"]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return None


def become(folder: str, environment: dict[str, str]) -> None:
    """Make this process the one of a command."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def run(arguments: list[str]) -> int:
    """Run a command as the console script does."""
    import atexit

    from flows import cli

    atexit.register(cli._end_quietly)
    return cli.main(arguments)


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    if (wanted := serve()) is not None:
        sys.exit(run(wanted))
