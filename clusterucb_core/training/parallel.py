"""Training on several devices of one machine: a process each, whose gradients are summed.

Files written: the task and the samples in a temporary folder; the checkpoint folders under `out`.
"""

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clusterucb_core import errors
from clusterucb_core.errors import ClusterUcbError, TrainingFailed
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.checkpoints import Checkpoint, read_checkpoint
from clusterucb_core.lm.settings import ModelSettings
from clusterucb_core.records import TokenizedSample
from clusterucb_core.training.plan import TrainingPlan, make_schedule

logger = logging.getLogger(__name__)

TASK_FILE, SAMPLES_FILE, ERROR_FILE = "task.json", "samples.npz", "error.json"
WORDS_FILE = "stderr.txt"
# what the first process says about its progress begins with this, on a line of its own
PROGRESS = "clusterucb progress: "
LAST_WORDS = 2000


class TrainingTask(Frozen):
    """What the processes of one training are to do; the samples lie beside it."""

    settings: ModelSettings
    plan: TrainingPlan
    start: Path | None
    out: Path
    device: str


def train_in_processes(
    task: TrainingTask, samples: Sequence[TokenizedSample], *, processes: int
) -> list[Checkpoint]:
    """Train with one process a device and return the checkpoints.

    The batches are those of one process: each step's micro batches are dealt out, and their gradients summed,
    so the result differs by rounding only.

    Args:
        task: model, plan and folders; `device` is `cuda` for the GPUs 0 to processes - 1, or `cpu`.
        samples: what is trained on.
        processes: how many.

    Raises:
        ClusterUcbError: what a process raised.
        TrainingFailed: a process ended otherwise; the message ends with its last words.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / TASK_FILE).write_text(task.model_dump_json(), encoding="utf-8")
        _write_samples(folder / SAMPLES_FILE, samples)
        launch = [sys.executable, "-m", "clusterucb_core.training.launch"]
        line = [*launch, "--standalone", f"--nproc-per-node={processes}"]
        line += ["-m", "clusterucb_core.training.worker", str(folder)]
        logger.info("training in %d processes", processes)
        code = _run_and_relay(line, folder / WORDS_FILE)
        _raise_failure(folder, code)
    ends = make_schedule(task.plan, len(samples)).ends
    return [read_checkpoint(task.out / f"checkpoint-{epoch}") for epoch in range(1, len(ends) + 1)]


def read_task(folder: Path) -> tuple[TrainingTask, list[TokenizedSample]]:
    """Return the task in a folder and its samples."""
    task = TrainingTask.model_validate_json((folder / TASK_FILE).read_text(encoding="utf-8"))
    with np.load(folder / SAMPLES_FILE, allow_pickle=False) as content:
        cuts = np.cumsum(content["lengths"])[:-1]
        ids, labels = np.split(content["input_ids"], cuts), np.split(content["labels"], cuts)
        names = content["sample_ids"].tolist()
    return task, [TokenizedSample(*parts) for parts in zip(names, ids, labels, strict=True)]


def write_failure(folder: Path, error: Exception) -> None:
    """Leave an error for the process that waits for the training; the first one stays."""
    known = isinstance(error, ClusterUcbError)
    kind = type(error).__name__ if known else TrainingFailed.__name__
    message = str(error) if known else f"a training process failed: {type(error).__name__}: {error}"
    with contextlib.suppress(FileExistsError), (folder / ERROR_FILE).open("x", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, "message": message}))


def _write_samples(path: Path, samples: Sequence[TokenizedSample]) -> None:
    np.savez(
        path,
        sample_ids=np.array([sample.sample_id for sample in samples]),
        lengths=np.array([sample.input_ids.size for sample in samples]),
        input_ids=np.concatenate([sample.input_ids for sample in samples]),
        labels=np.concatenate([sample.labels for sample in samples]),
    )


def _run_and_relay(line: Sequence[str], words: Path) -> int:
    """Run a command, log its progress as it comes, keep its stderr in a file, and return its exit code."""
    pipe = subprocess.PIPE
    with (
        words.open("w", encoding="utf-8") as stderr,
        # nothing is written to its stdin: that it is closed tells the command that this process has ended
        subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=stderr, text=True) as process,  # noqa: S603
    ):
        assert process.stdout is not None, "stdout is a pipe"
        try:
            for said in process.stdout:
                if said.startswith(PROGRESS):
                    logger.info("%s", said.removeprefix(PROGRESS).rstrip())
        except BaseException:
            process.terminate()
            raise
    return process.returncode


def _raise_failure(folder: Path, code: int) -> None:
    path = folder / ERROR_FILE
    if path.is_file():
        failure = json.loads(path.read_text(encoding="utf-8"))
        raise getattr(errors, failure["kind"], TrainingFailed)(failure["message"])
    if code != 0:
        words = (folder / WORDS_FILE).read_text(encoding="utf-8", errors="replace")
        raise TrainingFailed(
            f"a training process ended with code {code}; its last words: {words[-LAST_WORDS:]}"
        )
