"""A lease excludes threads and processes alike, and ends with its holder."""

import signal
import subprocess
import sys
import threading

import pytest

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.lm import devices
from clusterucb_core.lm.devices import free_lease, leased_device, leased_gpus

HOLD = """
import sys, time
from pathlib import Path
from clusterucb_core.lm.devices import free_lease
with free_lease({"gpu": Path(sys.argv[1])}):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def locks(tmp_path, monkeypatch):
    found = {f"cuda:{index}": tmp_path / f"gpu-{index}.lock" for index in range(2)}
    monkeypatch.setattr(devices, "gpu_locks", lambda: found)
    return found


def test_the_cpu_is_never_waited_for():
    with leased_device("cpu") as first, leased_device("cpu") as second:
        assert (first, second) == ("cpu", "cpu")


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(InvalidConfig, match="cuda:97"), leased_device("cuda:97"):
        pass


def test_each_lease_gets_a_gpu_of_its_own_and_gives_it_back(locks):
    with free_lease(locks) as first:
        with free_lease(locks) as second:
            assert {first, second} == {"cuda:0", "cuda:1"}
        with free_lease(locks) as again:
            assert again == second


def test_a_third_thread_waits_until_a_gpu_is_free(locks):
    entered = threading.Event()

    def wait_for_one():
        with free_lease(locks):
            entered.set()

    with free_lease(locks):
        with free_lease(locks):
            thread = threading.Thread(target=wait_for_one)
            thread.start()
            assert not entered.wait(3 * devices.POLL_S)
        assert entered.wait(20)
    thread.join()


def test_a_training_holds_every_gpu_or_the_one_that_was_named(locks):
    with leased_gpus("cuda") as held:
        assert held == ("cuda:0", "cuda:1")
    with leased_gpus("cuda:1") as held, free_lease(locks) as other:
        assert (held, other) == (("cuda:1",), "cuda:0")
    with leased_gpus("cpu") as held:
        assert held == ()


def test_a_killed_holder_leaves_no_lock(locks):
    line = [sys.executable, "-c", HOLD, str(locks["cuda:0"])]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with free_lease(locks) as name:
            assert name == "cuda:1"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with free_lease(locks) as name:
            assert name == "cuda:0"
