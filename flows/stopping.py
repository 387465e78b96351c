"""How a run stops when it is asked to: at the next batch of whatever computes, and no process stays behind.

Ctrl-C and the SIGTERM of a cancelled flow run arrive in the main thread of the flow's process, as an
exception there; what computes in other threads and processes is told here.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from clusterucb_core.pacing import stopped_by


@contextmanager
def stopping_workers() -> Generator[None]:
    """Stop what the task runner of this block has under way, where the block is interrupted.

    Threads stop at the end of their batch; processes of a pool are ended at once, and what they had begun is
    begun again by the next run. After a failure, which is no interruption, they finish their shard.
    """
    asked = threading.Event()
    with stopped_by(asked):
        try:
            yield
        except Exception:
            raise
        except BaseException:
            asked.set()
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def end_with_parent() -> None:
    """Let this process of a pool end as soon as the one that started it has ended, however that was."""
    # Ctrl-C reaches the whole group: what becomes of this process is for the run to say, which waits for it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a process of a pool was started by another"
    threading.Thread(target=_end_after, args=(parent,), name="end with parent", daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
