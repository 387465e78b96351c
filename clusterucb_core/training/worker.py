"""One process of a training on several devices: `python -m clusterucb_core.training.worker FOLDER`.

Started by `clusterucb_core.training.parallel` through `torch.distributed.run`, which tells it by environment
variables which of the processes it is.
"""

import logging
import sys
from pathlib import Path

from accelerate import PartialState

from clusterucb_core.training.loop import run_training
from clusterucb_core.training.parallel import PROGRESS, read_task, write_failure


def main(folder: Path) -> int:
    """Take part in the training whose task lies in a folder."""
    task, samples = read_task(folder)
    state = PartialState(cpu=task.device == "cpu")
    if state.is_main_process:
        _tell_progress()
    device = "cpu" if task.device == "cpu" else str(state.device)
    try:
        run_training(task.settings, samples, task.plan, start=task.start, out=task.out, device=device)
    except Exception as error:
        write_failure(folder, error)
        raise
    return 0


def _tell_progress() -> None:
    """Write what the core logs to stdout, from where the process that waits takes it."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(f"{PROGRESS}%(message)s"))
    logger = logging.getLogger("clusterucb_core")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
