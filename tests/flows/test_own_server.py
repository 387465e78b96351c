"""The server of a run's own as a process: it answers, and ends when the run is no more."""

import subprocess
import sys
import time

import httpx
import psutil
import pytest

from flows import own_server

HOST = "127.0.0.1"
# An application with the name of a module of `flows`, which is not to be found in its stead.
APPLICATION = """
async def application(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})
"""
# A process that starts a server as a run does, says its pid, and waits for it.
RUN = """
import os, subprocess, sys
server = subprocess.Popen([sys.executable, "-P", sys.argv[1], str(os.getpid()), *sys.argv[2:]])
print(server.pid, flush=True)
server.wait()
"""


@pytest.fixture
def run(load_module, tmp_path):
    """A process, the server that it started, and the server's address once that answers."""
    services = load_module("integration/services")
    (tmp_path / "health.py").write_text(APPLICATION, encoding="utf-8")
    program = tmp_path / "run.py"
    program.write_text(RUN, encoding="utf-8")
    port = services.free_port()
    line = [sys.executable, program, own_server.__file__, "--app-dir", tmp_path, "health:application"]
    line += ["--host", HOST, "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server = psutil.Process(int(process.stdout.readline()))
        address = f"http://{HOST}:{port}"
        services.wait_for(lambda: services.answers(address), seconds=60, what="an answer")
        yield process, server, address
        process.kill()


def test_a_server_of_a_run_answers_until_the_run_is_killed(run):
    process, server, address = run
    time.sleep(2 * own_server.LOOK_EVERY_S)
    assert httpx.get(address).text == "here"
    process.kill()
    server.wait(own_server.ENDS_WITHIN_S + 2 * own_server.LOOK_EVERY_S)
    assert not server.is_running()
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)
