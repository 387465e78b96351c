"""Processes of the local stack: started once, found again, never mistaken, ended with all they began."""

import os
import socket
import sys
from pathlib import Path

import psutil
import pytest
from stack import processes
from stack.errors import StackError
from stack.layout import Stack
from stack.processes import Service, running, start, stop, wait_ready

# the processes of a stack are meant to outlive the object that started them
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
SLEEP = "import time; time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF!r}]); {SLEEP}"


@pytest.fixture
def stack(tmp_path):
    made = Stack(checkout=tmp_path, home=tmp_path / "home", ports={})
    yield made
    stop(made, "thing")


def thing(code: str = SLEEP, *, port: int | None = None, ready: bool = True) -> Service:
    line = [sys.executable, "-c", code]
    return Service(name="thing", line=line, environment=dict(os.environ), port=port, ready=lambda _: ready)


def test_a_service_is_started_once(stack):
    assert start(stack, thing())
    first = running(stack, "thing")
    assert not start(stack, thing())
    assert running(stack, "thing") == first


def test_a_stopped_service_is_gone_and_stopping_it_again_is_fine(stack):
    start(stack, thing())
    pid = running(stack, "thing").pid
    assert stop(stack, "thing")
    assert not psutil.pid_exists(pid)
    assert not stop(stack, "thing")


def test_stopping_ends_what_the_service_began_even_if_it_ignores_the_request(stack):
    start(stack, thing(PARENT))
    process = psutil.Process(running(stack, "thing").pid)
    children = wait_for_children(process)
    stop(stack, "thing")
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_service_that_was_killed_is_started_anew_without_its_leftovers(stack):
    start(stack, thing(PARENT, port=free_port()))
    process = psutil.Process(running(stack, "thing").pid)
    children = wait_for_children(process)
    process.kill()
    process.wait()
    assert running(stack, "thing") is None
    assert start(stack, thing(PARENT, port=free_port()))
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_another_process_with_the_same_pid_is_not_ours(stack):
    start(stack, thing())
    record = stack.pid_file("thing")
    ours = running(stack, "thing")
    record.write_text(record.read_text().replace(f'"pid": {ours.pid}', f'"pid": {os.getpid()}'))
    assert running(stack, "thing") is None
    stop(stack, "thing")  # had it taken the pid for granted, this test would end here


def test_other_settings_of_a_running_service_are_an_error(stack):
    start(stack, thing())
    with pytest.raises(StackError, match=r"thing \(process \d+\) runs with other settings.*down first"):
        start(stack, thing(DEAF))


def test_a_port_in_use_is_an_error_that_names_port_and_process(stack):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=rf"port {port} for thing is in use by .*process {os.getpid()}"):
            start(stack, thing(port=port))


def test_a_service_that_ends_is_an_error_with_the_end_of_its_log(stack):
    service = thing("raise SystemExit('the disk is full')", ready=False)
    start(stack, service)
    with pytest.raises(StackError, match=r"(?s)thing ended; the end of .*thing\.log:\nthe disk is full$"):
        wait_ready(stack, service, seconds=30)


def test_a_service_that_is_not_ready_in_time_is_an_error(stack):
    service = thing(ready=False)
    start(stack, service)
    with pytest.raises(StackError, match=r"thing is not ready after 0\.1 s; its log .* is empty"):
        wait_ready(stack, service, seconds=0.1)


def test_a_broken_pid_file_is_an_error_that_names_it(stack):
    stack.private("pids")
    stack.pid_file("thing").write_text("17")
    with pytest.raises(StackError, match=r"thing\.json cannot be read"):
        running(stack, "thing")
    stack.pid_file("thing").unlink()


def test_the_log_before_the_last_start_is_kept(stack):
    start(stack, thing(f"print('one', flush=True); {SLEEP}"))
    log = stack.log("thing")
    wait_for_text(log, "one")
    stop(stack, "thing")
    start(stack, thing())
    assert log.with_suffix(".previous.log").read_text() == "one\n"


def wait_for_children(process: psutil.Process) -> list[psutil.Process]:
    for _ in range(400):
        children = [child for child in process.children() if child.environ().get(processes.MARK)]
        # deaf by now: its Python has left the start-up, where it has one thread and no code of ours
        if children and children[0].cpu_times().user + children[0].cpu_times().system > 0:
            return children
        psutil.wait_procs([process], timeout=0.05)
    raise AssertionError("the service began no process")


def wait_for_text(log: Path, text: str) -> None:
    for _ in range(400):
        if text in log.read_text():
            return
        psutil.wait_procs([psutil.Process()], timeout=0.05)
    raise AssertionError(f"{log} never had {text!r}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
