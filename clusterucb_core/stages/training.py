"""Warmup and fine-tuning: LoRA training on a share of the pool or on a selection.

Reads the artifacts `tokens`, `candidates` and `draws`; writes the artifact `training` with its checkpoints
and the ids of the samples that they learned from.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from clusterucb_core.artifacts import artifact_file, new_artifact, read_manifest
from clusterucb_core.errors import InvalidConfig
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.checkpoints import StepRecord, read_checkpoint, read_history
from clusterucb_core.lm.devices import leased_gpus
from clusterucb_core.lm.loading import resolve_device
from clusterucb_core.lm.tokens import open_tokens
from clusterucb_core.records import ArtifactRef
from clusterucb_core.seeds import child_rng, child_seed
from clusterucb_core.stages.intake import candidate_ids, pool_size
from clusterucb_core.stages.models import CheckpointRef, ModelRef, checkpoint_folder
from clusterucb_core.training import TrainingPlan, steps_per_epoch, train_on
from clusterucb_core.workspace import StageSpec, Workspace, location, resumable, stage_key, written

TRAINED_IDS = "sample_ids.txt"
CHECKPOINT_NAMES = "checkpoint-*"


class WarmupSettings(Frozen):
    """The training before the first gradients are taken."""

    fraction: float = Field(
        default=0.05, gt=0, le=1, title="Share", description="Share of the pool trained on (static mode)."
    )
    epochs: int = Field(
        default=4, ge=1, title="Epochs", description="Epochs, one checkpoint each (static mode)."
    )
    steps: int = Field(default=20, ge=1, title="Steps", description="Optimiser steps (dynamic mode).")
    learning_rate: float = Field(
        default=2.0e-5, gt=0, title="Learning rate", description="Peak learning rate."
    )
    batch_size: int = Field(default=128, ge=1, title="Batch", description="Samples an optimiser step.")


class FinetuneSettings(Frozen):
    """The training on the selection."""

    epochs: int = Field(
        default=4,
        ge=1,
        title="Epochs",
        description="Epochs; in dynamic mode the selection is renewed before each.",
    )
    learning_rate: float = Field(
        default=2.0e-5, gt=0, title="Learning rate", description="Peak learning rate."
    )
    batch_size: int = Field(default=128, ge=1, title="Batch", description="Samples an optimiser step.")


class TrainingSpec(StageSpec):
    """One training: on the samples of a draw, or on a random share of the candidates.

    `draws` None means a random `n_samples` of the candidates. Exactly one of `steps` and `epochs` is set.
    """

    stage: str = "training"
    version: int = 2
    model: ModelRef
    tokens: ArtifactRef
    candidates: ArtifactRef | None = None
    draws: ArtifactRef | None = None
    n_samples: int | None = None
    start: CheckpointRef | None = None
    learning_rate: float
    batch_size: int
    total_steps: int
    start_step: int = 0
    steps: int | None = None
    epochs: int | None = None
    seed: int
    run_id: str = location(default="")  # pyright: ignore[reportAssignmentType]


def warmup_spec(
    settings: WarmupSettings,
    model: ModelRef,
    *,
    tokens: ArtifactRef,
    candidates: ArtifactRef,
    later_steps: int | None,
    seed: int,
) -> TrainingSpec:
    """Return the spec of a warmup.

    Args:
        settings: the warmup's settings.
        model: the model trained.
        tokens: tokens of the pool.
        candidates: what may be trained on.
        later_steps: None for static mode; in dynamic mode the optimiser steps of all periods that follow.
        seed: the run's seed.
    """
    available = len(candidate_ids(candidates))
    if later_steps is None:
        n_samples = min(available, max(1, int(settings.fraction * pool_size(candidates) + 1e-9)))
        total, steps, epochs = (
            settings.epochs * steps_per_epoch(n_samples, settings.batch_size),
            None,
            settings.epochs,
        )
    else:
        n_samples = min(available, settings.steps * settings.batch_size)
        total, steps, epochs = settings.steps + later_steps, settings.steps, None
    return TrainingSpec(
        model=model,
        tokens=tokens,
        candidates=candidates,
        n_samples=n_samples,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        total_steps=total,
        steps=steps,
        epochs=epochs,
        seed=child_seed(seed, "warmup"),
    )


def finetune_spec(
    settings: FinetuneSettings, model: ModelRef, *, tokens: ArtifactRef, draws: ArtifactRef, seed: int
) -> TrainingSpec:
    """Return the spec of a static fine-tuning: a new adapter, all epochs on one selection."""
    steps = steps_per_epoch(len(selected_ids(draws)), settings.batch_size)
    return TrainingSpec(
        model=model,
        tokens=tokens,
        draws=draws,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        total_steps=settings.epochs * steps,
        epochs=settings.epochs,
        seed=child_seed(seed, "finetune"),
    )


def period_spec(
    settings: FinetuneSettings, *, warmup: TrainingSpec, start: CheckpointRef, draws: ArtifactRef, period: int
) -> TrainingSpec:
    """Return the spec of one dynamic period: the warmup's schedule goes on for one epoch on a selection."""
    done = read_checkpoint(checkpoint_folder(start))
    return TrainingSpec(
        model=warmup.model,
        tokens=warmup.tokens,
        draws=draws,
        start=start,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        total_steps=warmup.total_steps,
        start_step=done.step,
        epochs=1,
        seed=child_seed(warmup.seed, "period", str(period)),
    )


@resumable
def run_training(spec: TrainingSpec, workspace: Workspace, execution: ExecutionSettings) -> ArtifactRef:
    """Train, and keep each checkpoint with adapter, Adam moments and mean learning rate."""
    ids = _training_ids(spec)
    plan = TrainingPlan(
        learning_rate=spec.learning_rate,
        batch_size=spec.batch_size,
        total_steps=spec.total_steps,
        start_step=spec.start_step,
        steps=spec.steps,
        epochs=spec.epochs,
        seed=spec.seed,
    )
    start = None if spec.start is None else checkpoint_folder(spec.start)
    manifest: dict[str, Any] = {
        "n_samples": len(ids),
        "run_id": spec.run_id,
        "start": None if spec.start is None else spec.start.training.fingerprint,
    }
    samples = open_tokens(spec.tokens).take(ids)
    device = resolve_device(execution.device)
    with (
        leased_gpus(device) as gpus,
        # after a kill, training goes on from the checkpoints that were finished
        new_artifact(
            workspace.artifacts, spec.stage, stage_key(spec), manifest, keep=CHECKPOINT_NAMES
        ) as folder,
    ):
        (folder / TRAINED_IDS).write_text("\n".join(ids), encoding="utf-8")
        checkpoints = train_on(
            spec.model.settings,
            samples,
            plan,
            start=start,
            out=folder,
            device=device,
            processes=max(1, len(gpus)),
        )
        manifest["n_checkpoints"] = len(checkpoints)
    return written(spec, workspace)


def checkpoint_refs(training: ArtifactRef) -> tuple[CheckpointRef, ...]:
    """Return the checkpoints of a training, first to last."""
    count = int(read_manifest(training)["n_checkpoints"])
    return tuple(CheckpointRef(training=training, index=index) for index in range(1, count + 1))


def checkpoint_weights(checkpoints: Sequence[CheckpointRef]) -> tuple[float, ...]:
    """Return the share of each checkpoint's mean learning rate in their sum: LESS's w_i."""
    rates = [read_checkpoint(checkpoint_folder(ref)).mean_learning_rate for ref in checkpoints]
    if sum(rates) <= 0:
        raise InvalidConfig(
            f"mean learning rates {rates} of the warmup sum to zero; raise warmup.learning_rate"
        )
    return tuple(rate / sum(rates) for rate in rates)


def loss_history(training: ArtifactRef) -> list[StepRecord]:
    """Return step, loss and learning rate of each optimiser step of a training."""
    refs = checkpoint_refs(training)
    return [record for ref in refs for record in read_history(checkpoint_folder(ref))]


def selected_ids(draws: ArtifactRef) -> list[str]:
    """Return the selected sample ids of a `draws` artifact in rank order."""
    return artifact_file(draws, "selected.txt").read_text(encoding="utf-8").split("\n")


def _training_ids(spec: TrainingSpec) -> list[str]:
    if spec.draws is not None:
        return selected_ids(spec.draws)
    assert spec.candidates is not None, "a training without draws takes its samples from the candidates"
    candidates = candidate_ids(spec.candidates)
    rng = child_rng(spec.seed, "training samples")
    return [candidates[index] for index in rng.permutation(len(candidates))[: spec.n_samples]]
