"""The server of a run's own as a process: it answers, and ends when the run is no more."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import own_server

# A process that starts a server as a run does, says its pid once it serves, and waits.
RUN = """
import os, subprocess, sys
server = subprocess.Popen(
    [sys.executable, "-P", sys.argv[1], str(os.getpid()), "-m", sys.argv[2], *sys.argv[3:]],
    stdout=subprocess.PIPE, text=True,
)
server.stdout.readline()
print(server.pid, flush=True)
server.wait()
"""


@pytest.fixture
def run(tmp_path):
    program = tmp_path / "run.py"
    program.write_text(RUN, encoding="utf-8")

    def started(module: str, *arguments: str) -> tuple["subprocess.Popen[str]", psutil.Process]:
        line = [sys.executable, str(program), str(Path(own_server.__file__)), module, *arguments]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        assert process.stdout is not None
        return process, psutil.Process(int(process.stdout.readline()))

    return started


def test_a_server_ends_when_the_run_is_killed(run):
    process, server = run("http.server", "0", "--bind", "127.0.0.1")
    time.sleep(2 * own_server.LOOK_EVERY_S)
    assert server.is_running()
    process.kill()
    process.communicate()
    server.wait(own_server.ENDS_WITHIN_S)
    assert not server.is_running()


def test_the_module_gets_its_arguments_and_no_folder_of_this_program(run, tmp_path):
    module = tmp_path / "served.py"
    module.write_text("import sys, time\nprint(sys.argv[1:], sys.path[0], flush=True)\ntime.sleep(60)\n", "utf-8")
    line = [sys.executable, "-P", own_server.__file__, str(os.getpid()), "-m", "served", "--host", "here"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == f"['--host', 'here'] {tmp_path}\n"
        server.terminate()
