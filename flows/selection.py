"""The trajectories of a run: warmup, features, clusters, draws and training, in either mode."""

from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.selection import (
    SelectionSettings,
    baseline_seed,
    needs_gradient_pass,
    share_of,
)
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.features import feature_space
from clusterucb_core.stages.intake import pool_size
from clusterucb_core.stages.models import CheckpointRef, FeatureSpace
from clusterucb_core.stages.publication import PeriodDraws
from clusterucb_core.stages.summary import Trajectory
from clusterucb_core.stages.training import (
    TrainingSpec,
    checkpoint_refs,
    checkpoint_weights,
    finetune_spec,
    period_spec,
    warmup_spec,
)
from clusterucb_core.training import steps_per_epoch
from flows.features import Checkpoints, with_features
from flows.preparation import Inputs
from tasks.finetune import finetune
from tasks.selection import draw_selection
from tasks.warmup import warmup


def select(plan: RunPlan, inputs: Inputs, *, subject: str) -> Trajectory:
    """Select for one subject, train on the selection, and return both.

    Args:
        plan: the run.
        inputs: what its files became.
        subject: `selection` for the configured policy, `full`, or `random:<i>`.
    """
    settings, seed = _subject_settings(plan, subject)
    return select_by(plan, inputs, settings, subject=subject, seed=seed)


def select_by(
    plan: RunPlan, inputs: Inputs, settings: SelectionSettings, *, subject: str, seed: int
) -> Trajectory:
    """Select by other settings than the run's, train on the selection, and return both.

    Args:
        plan: the run.
        inputs: what its files became.
        settings: policy and budget.
        subject: the name of what comes of it.
        seed: of the draws; the training has the run's.
    """
    if plan.config.mode == "static":
        return _static(plan, inputs, settings, subject=subject, seed=seed)
    return _dynamic(plan, inputs, settings, subject=subject, seed=seed)


def _static(
    plan: RunPlan, inputs: Inputs, settings: SelectionSettings, *, subject: str, seed: int
) -> Trajectory:
    trainings: list[ArtifactRef] = []
    spec = _draw_spec(plan, inputs, settings, period=1, seed=seed)
    warm_spec = _warmup(plan, inputs) if settings.policy != "random" else None
    if warm_spec is not None:
        warm = warmup(warm_spec, plan.workspace, plan.execution)
        trainings.append(warm)
        checkpoints = checkpoint_refs(warm)
        spaces = tuple(_space(plan, checkpoint) for checkpoint in checkpoints)
        at = Checkpoints(spaces=spaces, weights=checkpoint_weights(checkpoints), first=spaces[0])
        spec = with_features(plan, inputs, spec, at)
    draws = draw_selection(spec, plan.workspace, plan.execution)
    training = finetune_spec(
        plan.config.finetune, plan.model, tokens=inputs.tokens, draws=draws, seed=plan.config.seed
    )
    tuned = finetune(paid(training, plan), plan.workspace, plan.execution)
    return _trajectory(subject, [PeriodDraws(spec=spec, draws=draws)], [*trainings, tuned], warm_spec)


def _dynamic(
    plan: RunPlan, inputs: Inputs, settings: SelectionSettings, *, subject: str, seed: int
) -> Trajectory:
    warm_spec = _warmup(plan, inputs)
    trainings = [warmup(warm_spec, plan.workspace, plan.execution)]
    checkpoint = checkpoint_refs(trainings[0])[-1]
    first = _space(plan, checkpoint)
    periods: list[PeriodDraws] = []
    clustering = None
    # one full pass at the warmup checkpoint serves the clustering, side information and the first selection
    full_first = needs_gradient_pass(settings, plan.config.clusters)
    for period in range(1, plan.config.finetune.epochs + 1):
        drawn = settings.model_copy(update={"policy": "full"}) if period == 1 and full_first else settings
        spec = _draw_spec(plan, inputs, drawn, period=period, seed=seed)
        if drawn.policy != "random":
            at = Checkpoints(spaces=(_space(plan, checkpoint),), weights=(1.0,), first=first)
            spec = with_features(plan, inputs, spec, at, clustering=clustering)
            clustering = spec.clustering
        draws = draw_selection(spec, plan.workspace, plan.execution)
        periods.append(PeriodDraws(spec=spec, draws=draws))
        training = period_spec(
            plan.config.finetune, warmup=warm_spec, start=checkpoint, draws=draws, period=period
        )
        trainings.append(finetune(paid(training, plan), plan.workspace, plan.execution))
        checkpoint = checkpoint_refs(trainings[-1])[-1]
    return _trajectory(subject, periods, trainings, warm_spec)


def _subject_settings(plan: RunPlan, subject: str) -> tuple[SelectionSettings, int]:
    name, _, number = subject.partition(":")
    settings = plan.config.selection
    if name == "selection":
        return settings, plan.config.seed
    seed = baseline_seed(plan.config.seed, int(number)) if number else plan.config.seed
    return settings.model_copy(update={"policy": name}), seed


def later_steps(plan: RunPlan, inputs: Inputs) -> int:
    """Return the optimiser steps of all periods of dynamic mode."""
    k = share_of(plan.config.selection.top_fraction, pool_size(inputs.candidates))
    return plan.config.finetune.epochs * steps_per_epoch(k, plan.config.finetune.batch_size)


def _warmup(plan: RunPlan, inputs: Inputs) -> TrainingSpec:
    spec = warmup_spec(
        plan.config.warmup,
        plan.model,
        tokens=inputs.tokens,
        candidates=inputs.trainable,
        later_steps=later_steps(plan, inputs) if plan.config.mode == "dynamic" else None,
        seed=plan.config.seed,
    )
    return paid(spec, plan)


def paid(spec: TrainingSpec, plan: RunPlan) -> TrainingSpec:
    """Return a training with the run that pays for it."""
    return spec.model_copy(update={"run_id": plan.run_id})


def _space(plan: RunPlan, checkpoint: CheckpointRef) -> FeatureSpace:
    return feature_space(plan.model, checkpoint, plan.config.features, plain=False, seed=plan.config.seed)


def _draw_spec(
    plan: RunPlan, inputs: Inputs, settings: SelectionSettings, *, period: int, seed: int
) -> DrawSpec:
    return DrawSpec(
        settings=settings,
        target=inputs.target,
        tokens=inputs.tokens,
        candidates=inputs.candidates,
        period=period,
        seed=seed,
        max_excluded_fraction=plan.config.features.max_excluded_fraction,
        run_id=plan.run_id,
    )


def _trajectory(
    subject: str, periods: list[PeriodDraws], trainings: list[ArtifactRef], warm: TrainingSpec | None
) -> Trajectory:
    return Trajectory(
        subject=subject,
        periods=tuple(periods),
        checkpoint=checkpoint_refs(trainings[-1])[-1],
        trainings=tuple(trainings),
        warmup=warm,
    )
