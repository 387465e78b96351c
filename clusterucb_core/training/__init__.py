"""LoRA training with `transformers.Trainer`, for warmup and fine-tune alike."""

import logging
from collections.abc import Sequence
from pathlib import Path

from clusterucb_core.errors import InvalidConfig, MissingArtifact, StaleArtifact
from clusterucb_core.lm.checkpoints import Checkpoint, read_checkpoint
from clusterucb_core.lm.settings import ModelSettings
from clusterucb_core.records import TokenizedSample
from clusterucb_core.training.plan import TrainingPlan, make_schedule, remaining_plan, steps_per_epoch

logger = logging.getLogger(__name__)

__all__ = ["TrainingPlan", "steps_per_epoch", "train", "train_on"]


def train(
    settings: ModelSettings,
    samples: Sequence[TokenizedSample],
    plan: TrainingPlan,
    *,
    start: Path | None,
    out: Path,
    device: str,
    processes: int = 1,
) -> list[Checkpoint]:
    """Train an adapter and write a checkpoint after each epoch, or at the end of a plan of steps.

    Args:
        settings: base model and adapter.
        samples: what is trained on, each with at least one supervised token.
        plan: how long, how fast, in which order.
        start: a checkpoint to go on from, adapter and Adam state; None for a new adapter seeded by the plan.
        out: the checkpoints become `out/checkpoint-1`, `out/checkpoint-2`, ... from the plan's first number
            on; equal names are replaced.
        device: a resolved device name; `cuda` for several processes with a GPU each.
        processes: how many share the training; the result differs by rounding only.

    Returns:
        The checkpoints in order. On the CPU the same arguments give the same bytes.

    Raises:
        InvalidConfig: there are no samples, one carries no loss, or the plan runs past its schedule.
        InvalidModel: the model cannot be loaded.
        TrainingDiverged: the loss is not finite.
        MissingArtifact: `start` holds no checkpoint.
        StaleArtifact: the checkpoint at `start` does not fit the model.
        TrainingFailed: one of several processes ended without a word.
    """
    _check_samples(samples)
    if processes > 1:
        from clusterucb_core.training.parallel import TrainingTask, train_in_processes

        task = TrainingTask(settings=settings, plan=plan, start=start, out=out, device=device)
        return train_in_processes(task, samples, processes=processes)
    from clusterucb_core.training.loop import run_training

    return run_training(settings, samples, plan, start=start, out=out, device=device)


def train_on(
    settings: ModelSettings,
    samples: Sequence[TokenizedSample],
    plan: TrainingPlan,
    *,
    start: Path | None,
    out: Path,
    device: str,
    processes: int = 1,
) -> list[Checkpoint]:
    """Train as `train` does, after the checkpoints that lie in `out` already; they must be of this training.

    Raises:
        ClusterUcbError: as `train`.
    """
    done = _finished(out, plan, len(samples))
    if done:
        if len(done) == (plan.epochs or 1):
            return done
        plan, start = remaining_plan(plan, done=len(done), step=done[-1].step), done[-1].folder
    made = train(settings, samples, plan, start=start, out=out, device=device, processes=processes)
    return [*done, *made]


def _finished(out: Path, plan: TrainingPlan, n_samples: int) -> list[Checkpoint]:
    """Return the checkpoints of a training that a folder holds, from the first to the first gap."""
    done: list[Checkpoint] = []
    for place, end in enumerate(make_schedule(plan, n_samples).ends):
        folder = out / f"checkpoint-{plan.first_checkpoint + place}"
        if not folder.is_dir():
            break
        try:
            found = read_checkpoint(folder)
        except (MissingArtifact, StaleArtifact) as error:
            logger.warning("%s; training goes on from the checkpoint before", error)
            break
        assert found.step == plan.start_step + end, f"{folder} is of another training"
        done.append(found)
    if done:
        logger.info("training: going on after %d of %d checkpoints", len(done), plan.epochs or 1)
    return done


def _check_samples(samples: Sequence[TokenizedSample]) -> None:
    if not samples:
        raise InvalidConfig(
            "there are 0 samples to train on; raise the fraction or the budget that chooses them"
        )
    for sample in samples:
        if not (sample.labels[1:] != -100).any():
            raise InvalidConfig(
                f"sample {sample.sample_id} has no supervised token; exclude it before training"
            )
