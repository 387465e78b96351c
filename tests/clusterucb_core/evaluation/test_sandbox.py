import json
import os
import socket
import time
from pathlib import Path

import pytest

from clusterucb_core.errors import NoSandbox
from clusterucb_core.evaluation import sandbox
from clusterucb_core.evaluation.sandbox import (
    ENDED_EARLY,
    PASSED,
    TIMEOUT,
    SandboxLimits,
    check_sandbox,
    run_program,
)

SMALL = SandboxLimits(wall_s=20, cpu_s=1, memory_bytes=2**28, disk_bytes=2**20)


@pytest.fixture(scope="module", autouse=True)
def _isolated():
    try:
        check_sandbox()
    except NoSandbox as error:
        pytest.skip(f"no sandbox here: {error}")


def told(expression):
    """Return the value of an expression in the sandbox: it is told as the name of an exception."""
    program = f"import os, json, socket\nraise type(json.dumps({expression}), (Exception,), {{}})"
    return json.loads(run_program(program))


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("", PASSED),
        ("import math, json, collections, heapq, re, functools", PASSED),
        ("x = 1\nassert x == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", ENDED_EARLY),
        ("x = bytearray(2**30)", "MemoryError"),
        ("while True: pass", ENDED_EARLY),
        ("open('big', 'wb').write(bytes(2**22))", "OSError"),
        ("import numpy", "ModuleNotFoundError"),
        ("print('x' * 10**7); import sys; sys.stderr.write('y' * 10**7)", PASSED),
        ("if __name__ == '__main__': assert False", PASSED),
    ],
)
def test_a_program_comes_to_what_it_does(program, outcome):
    assert run_program(program, SMALL) == outcome


def test_a_program_that_waits_is_ended_with_all_that_it_started():
    mark = f"waits-{time.monotonic_ns()}"
    program = f"import os, time\nif os.fork() == 0: os.execv({os.path.realpath('/bin/sleep')!r}, "
    program += f"['sleep', '600', '{mark}'])\ntime.sleep(600)"
    began = time.monotonic()
    assert run_program(program, SandboxLimits(wall_s=2)) == TIMEOUT
    assert time.monotonic() - began < 60
    deadline = time.monotonic() + 20  # the kernel ends them in its own time
    while _running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _running(mark) == []


def _running(mark):
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if _holds(path, mark)]


def _holds(path, mark):
    try:
        return mark.encode() in path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False  # it ended meanwhile


def test_processes_are_counted():
    program = "import os, time\nfor _ in range(100):\n    if os.fork() == 0: time.sleep(60)"
    assert run_program(program, SandboxLimits(wall_s=20, processes=8)) == "BlockingIOError"


def test_there_is_no_network_not_even_this_machines():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert run_program(f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)") == "OSError"
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_neither_the_files_nor_the_processes_of_the_machine_can_be_seen(tmp_path):
    (tmp_path / "secret").write_text("s", encoding="utf-8")
    assert run_program(f"open({str(tmp_path / 'secret')!r})") == "FileNotFoundError"
    assert not {"home", "tmp", "proc", "sys", "var"} & set(told("os.listdir('/')"))
    assert told("os.listdir('.')") == []
    assert told("os.getppid()") == 1


def test_only_the_work_folder_can_be_written_to():
    assert run_program("open('here', 'w').write('x')") == PASSED
    for folder in ("/", "/usr", "/dev", os.path.realpath(os.__file__).rpartition("/")[0]):
        assert run_program(f"open({folder!r} + '/here', 'w')") == "OSError"


def test_environment_and_rights_are_empty():
    assert set(told("dict(os.environ)")) <= {"LC_CTYPE"}, "Python itself sets the locale"
    assert run_program("import os; os.chroot('.')") == "PermissionError"


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_program("open('here', 'w').write('x')")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_isolates_nothing_runs_nothing(tmp_path, monkeypatch):
    launcher = tmp_path / "launcher.py"
    text = sandbox.LAUNCHER.read_text(encoding="utf-8")
    launcher.write_text(
        text.replace('_call("unshare", NEW_NAMESPACES)', '_call("unshare", -1)'), encoding="utf-8"
    )
    monkeypatch.setattr(sandbox, "LAUNCHER", launcher)
    with pytest.raises(NoSandbox, match=r"unshare: Invalid argument.*allow_code_execution=false"):
        check_sandbox()
