"""Processes of a pool end with the run that started them, even where that is killed."""

import subprocess
import sys

import psutil

KILLED = """
import concurrent.futures, multiprocessing, os, signal, sys
from flows.pool_processes import end_with_run

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, initializer=end_with_run) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_of_a_pool_ends_with_a_run_that_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    run = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process = psutil.Process(int(run.stdout.readline()))
    run.communicate("now\n", timeout=60)
    assert run.returncode == -9
    process.wait(30)  # raises where it lives on
