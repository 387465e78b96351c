"""One GPU for one stage at a time: shard tasks of this and other runs share the GPUs of a machine.

Files written: an empty lock file a GPU in the machine's temporary folder. The operating system gives a lock
back when its holder ends, however it ends.
"""

import fcntl
import logging
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clusterucb_core.lm.loading import resolve_device

logger = logging.getLogger(__name__)

POLL_S = 0.2
REPORT_EVERY_S = 60.0


@contextmanager
def leased_device(name: str) -> Generator[str]:
    """Wait for a free device, and hold it until the block ends.

    Args:
        name: as in `execution.device`. `auto` and `cuda` take whichever GPU is free first, `cuda:1` waits for
            that one. The CPU is never waited for.

    Yields:
        The name of one device: `cpu`, or `cuda:<number>`.

    Raises:
        InvalidConfig: the name is unknown, or that device is not here.
    """
    device = resolve_device(name)
    if device == "cpu":
        yield device
        return
    gpus = gpu_locks()
    with free_lease(gpus if device == "cuda" else {device: gpus[device]}) as held:
        yield held


@contextmanager
def leased_gpus(device: str) -> Generator[tuple[str, ...]]:
    """Hold every GPU that a device name stands for: all of them for `cuda`, else that one; none for `cpu`."""
    gpus = {} if device == "cpu" else gpu_locks()
    wanted = gpus if device == "cuda" else {device: gpus[device]} if device in gpus else {}
    with ExitStack() as held:
        # always in the same order, so that two runs never wait for each other
        yield tuple(held.enter_context(free_lease({name: wanted[name]})) for name in sorted(wanted))


def gpu_locks() -> dict[str, Path]:
    """Return the lock file of each visible GPU by device name, named by the GPU and not by its number."""
    import torch

    folder = Path(tempfile.gettempdir())
    return {
        f"cuda:{index}": folder / f"clusterucb-{torch.cuda.get_device_properties(index).uuid}.lock"
        for index in range(torch.cuda.device_count())
    }


@contextmanager
def free_lease(locks: Mapping[str, Path]) -> Generator[str]:
    """Wait until one of some lock files is free, hold it, and give its name.

    Args:
        locks: lock files by name, tried in order.
    """
    began = reported = time.monotonic()
    while True:
        for name, path in locks.items():
            with path.open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield name
                return
        time.sleep(POLL_S)
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            logger.info("waiting for %s since %.0f s: in use", " or ".join(locks), reported - began)
