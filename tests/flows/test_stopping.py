"""What an interruption of a run does to what the run has under way."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import psutil
import pytest

from clusterucb_core import pacing
from clusterucb_core.errors import RunStopped
from clusterucb_core.pacing import Pace, advance
from flows.stopping import stopping_workers

# A process that starts one of a pool, says which, and waits for it.
PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from flows.stopping import end_with_parent
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def work(begun: threading.Event) -> int:
    """Count until stopped, and return how far that was; a minute of it would be a failure."""
    pace = Pace(pacing.BEGUN_AND_OVER, "work", "samples", None)
    try:
        for _ in range(6000):
            advance(pace)
            begun.set()
            time.sleep(0.01)
    except RunStopped:
        return pace.done
    return -1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_stops_a_thread_at_its_next_count(error):
    begun = threading.Event()

    def interrupted(pool: ThreadPoolExecutor, submitted: "list[Future[int]]") -> None:
        with stopping_workers():
            submitted.append(pool.submit(copy_context().run, work, begun))
            assert begun.wait(30)
            raise error

    with ThreadPoolExecutor(1) as pool:
        working = list[Future[int]]()
        with pytest.raises(error):
            interrupted(pool, working)
        assert working[0].result(timeout=30) > 0


def test_a_failure_lets_a_thread_come_to_its_end():
    done: list[int] = []

    def count() -> None:
        pace = Pace(pacing.BEGUN_AND_OVER, "work", "samples", 3)
        for _ in range(3):
            advance(pace)
            time.sleep(0.02)
        done.append(pace.done)

    def failing(pool: ThreadPoolExecutor) -> None:
        with stopping_workers():
            pool.submit(copy_context().run, count)
            raise ValueError("a shard failed")

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="a shard failed"):
        failing(pool)
    assert done == [3]


def test_an_interruption_ends_the_processes_of_a_pool():
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    process.start()
    with pytest.raises(KeyboardInterrupt), stopping_workers():
        raise KeyboardInterrupt
    process.join(30)
    assert process.exitcode == -signal.SIGTERM


def test_a_process_of_a_pool_ends_with_the_one_that_started_it(tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(PARENT, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, program], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(30)
    assert not child.is_running()
