"""What each process of a pool does first: it sees to it that it ends with the run that has started it."""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess


def end_with_run() -> None:
    """End this process once the process that started it has ended, however it ended.

    A process of Python's pools waits for work from a pipe that it holds open itself: where the run was killed
    it would wait for ever, with its model in memory.
    """
    run = multiprocessing.parent_process()
    assert run is not None, "a process of a pool was started by another process"
    threading.Thread(target=_end_after, args=(run,), name="end with run", daemon=True).start()


def _end_after(run: BaseProcess) -> None:
    run.join()
    os._exit(1)
