"""The gate before a catalog: one process at a time tries to open it, so that readers cannot starve a writer.

DuckDB lets readers in beside each other, and a writer only alone: where one of several readers is always
inside, a writer that tries again and again would never find the file free. Whoever waits for the file holds
the gate, and who comes later waits there. The gate is a lock on the catalog's folder: nothing is written, and
the operating system gives it back when its holder ends.
"""

import fcntl
import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

# A courtesy, not a lock: a process that has the catalog open and opens it again would wait for one that waits
# for it.
PATIENCE_S = 5.0
POLL_S = 0.02


@contextmanager
def gate(path: Path) -> Generator[None]:
    """Hold the gate of a catalog within the block, after waiting for those who hold it, but not for ever."""
    try:
        hold = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:  # whoever opens the catalog is told what is wrong with it
        logger.debug("%s has no gate: %s", path, error)
        yield
        return
    try:
        _take(hold)
        yield
    finally:
        os.close(hold)


def _take(hold: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL_S)
        except OSError as error:  # a file system without such locks
            logger.debug("no gate can be held there: %s", error)
            return
        else:
            return
