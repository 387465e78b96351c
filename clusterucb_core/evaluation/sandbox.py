"""Runs programs that a model wrote, isolated from this machine: see `sandbox_launcher` for how.

A program has no network, sees no file but those of the system and of Python, can write to an empty folder in
memory only, has an empty environment, and ends with its time, its memory or its processes. This protects the
machine; a program that sets out to forge its own score can.

Makes and removes an empty temporary folder, under which nothing is ever written.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from pydantic import PositiveFloat, PositiveInt

from clusterucb_core.errors import NoSandbox
from clusterucb_core.frozen import Frozen

PASSED = "passed"
TIMEOUT = "timeout"
ENDED_EARLY = "ended early"
LAUNCHER = Path(__file__).with_name("sandbox_launcher.py")
_MOST_ANSWER_BYTES = 4096


class SandboxLimits(Frozen):
    """What a program may use: seconds on the wall and of a processor, bytes, open files, processes."""

    wall_s: PositiveFloat = 10.0
    cpu_s: PositiveInt = 5
    memory_bytes: PositiveInt = 2**30
    file_bytes: PositiveInt = 2**20
    disk_bytes: PositiveInt = 2**24
    open_files: PositiveInt = 64
    processes: PositiveInt = 16


DEFAULT_LIMITS = SandboxLimits()


def run_program(program: str, limits: SandboxLimits = DEFAULT_LIMITS) -> str:
    """Run a Python program in the sandbox and return what became of it.

    Args:
        program: its text; only the standard library can be imported.
        limits: what it may use.

    Returns:
        `PASSED` where it ran to its end, the name of the exception that ended it, such as `AssertionError`,
        `TIMEOUT`, or `ENDED_EARLY` where it left or was stopped by a limit.

    Raises:
        NoSandbox: this machine does not let a process be isolated; nothing was run.
    """
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryDirectory(prefix="clusterucb-") as root:
        in_time = _launched(_request(program, root, limits), answer, limits.wall_s)
        answer.seek(0)
        text = answer.read(_MOST_ANSWER_BYTES).decode(errors="replace")
    started, _, outcome = text.partition("started\n")
    if started or not text:
        raise NoSandbox(
            f"this machine does not let a program be isolated ({_problem(text)}); run where user namespaces "
            "are permitted (in a container: with the right to unshare), or set "
            "evaluate.allow_code_execution=false"
        )
    if not in_time:
        return TIMEOUT
    return _outcome(outcome)


def check_sandbox() -> None:
    """Check that programs can be isolated on this machine, by running an empty one.

    Raises:
        NoSandbox: they cannot.
    """
    outcome = run_program("")
    if outcome != PASSED:
        raise NoSandbox(
            f"an empty program came to {outcome!r} in the sandbox instead of {PASSED!r}; "
            "free some memory and processor time, or set evaluate.allow_code_execution=false"
        )


def _request(program: str, root: str, limits: SandboxLimits) -> bytes:
    python = Path(sys.executable).resolve()
    folders = [Path(sys.base_prefix), Path(sys.base_exec_prefix), python.parent.parent]
    folders += [folder.resolve() for folder in folders]
    request = {
        "program": program,
        "root": root,
        "python": str(python),
        "python_folders": sorted({str(folder) for folder in folders if folder != Path("/")}),
        "disk_bytes": limits.disk_bytes,
        "as_nobody": os.geteuid() == 0,
        "limits": {
            "RLIMIT_CPU": limits.cpu_s,
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_FSIZE": limits.file_bytes,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_NPROC": limits.processes,
            "RLIMIT_CORE": 0,
        },
    }
    return json.dumps(request).encode()


def _launched(request: bytes, answer: IO[bytes], wall_s: float) -> bool:
    """Run the launcher, and return whether it ended in time."""
    launcher = subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", str(LAUNCHER)],
        stdin=subprocess.PIPE,
        stdout=answer,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,
    )
    try:
        launcher.communicate(request, timeout=wall_s)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def _problem(text: str) -> str:
    try:
        return str(json.loads(text.partition("\n")[0])["problem"])
    except (ValueError, KeyError, TypeError):
        return text or "the launcher ended without a word"


def _outcome(text: str) -> str:
    try:
        return str(json.loads(text)["outcome"])
    except (ValueError, KeyError, TypeError):
        return ENDED_EARLY
