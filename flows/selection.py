"""The trajectories of a run: warmup, features, clusters, draws and training, in either mode."""

from prefect import unmapped

from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.selection import (
    SelectionSettings,
    baseline_seed,
    is_bandit,
    needs_gradient_pass,
    share_of,
)
from clusterucb_core.stages.clusters import ClusterSpec
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.features import feature_space, plan_jobs
from clusterucb_core.stages.intake import candidate_ids, pool_size, validation_ids
from clusterucb_core.stages.models import CheckpointRef, FeatureSpace
from clusterucb_core.stages.publication import PeriodDraws
from clusterucb_core.stages.scores import plain_space
from clusterucb_core.stages.sides import FeaturePass, ModelTokens, Sides, kept_states, side_passes, sides_of
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
from flows.preparation import Inputs
from flows.progress import show_progress
from tasks.cluster import cluster_pool
from tasks.featurize import featurize_shard
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
    if settings.policy != "random":
        warm = warmup(_warmup(plan, inputs), plan.workspace, plan.execution)
        trainings.append(warm)
        checkpoints = checkpoint_refs(warm)
        spaces = tuple(_space(plan, checkpoint) for checkpoint in checkpoints)
        weights = checkpoint_weights(checkpoints)
        sides = _sides(plan, inputs, settings, first=spaces[0], counted=(spaces, weights))
        _featurize_target(plan, inputs, spaces, first=spaces[0])
        _featurize_pool(plan, inputs, () if is_bandit(settings.policy) else spaces, first=spaces[0])
        _featurize_sides(plan, inputs, sides, first=spaces[0])
        clustering = _cluster(plan, inputs, sides)
        spec = _with_spaces(spec, spaces, weights, clustering=clustering, sides=sides)
    draws = draw_selection(spec, plan.workspace, plan.execution)
    training = finetune_spec(
        plan.config.finetune, plan.model, tokens=inputs.tokens, draws=draws, seed=plan.config.seed
    )
    tuned = finetune(_paid(training, plan), plan.workspace, plan.execution)
    return _trajectory(subject, [PeriodDraws(spec=spec, draws=draws)], [*trainings, tuned])


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
            space = _space(plan, checkpoint)
            sides = _sides(plan, inputs, drawn, first=first, counted=((space,), (1.0,)))
            _featurize_target(plan, inputs, (space,), first=first)
            _featurize_pool(plan, inputs, (space,) if drawn.policy == "full" else (), first=first)
            _featurize_sides(plan, inputs, sides, first=first)
            clustering = clustering or _cluster(plan, inputs, sides)
            spec = _with_spaces(spec, (space,), (1.0,), clustering=clustering, sides=sides)
        draws = draw_selection(spec, plan.workspace, plan.execution)
        periods.append(PeriodDraws(spec=spec, draws=draws))
        training = period_spec(
            plan.config.finetune, warmup=warm_spec, start=checkpoint, draws=draws, period=period
        )
        trainings.append(finetune(_paid(training, plan), plan.workspace, plan.execution))
        checkpoint = checkpoint_refs(trainings[-1])[-1]
    return _trajectory(subject, periods, trainings)


def _subject_settings(plan: RunPlan, subject: str) -> tuple[SelectionSettings, int]:
    name, _, number = subject.partition(":")
    settings = plan.config.selection
    if name == "selection":
        return settings, plan.config.seed
    seed = baseline_seed(plan.config.seed, int(number)) if number else plan.config.seed
    return settings.model_copy(update={"policy": name}), seed


def _warmup(plan: RunPlan, inputs: Inputs) -> TrainingSpec:
    later = None
    if plan.config.mode == "dynamic":
        k = share_of(plan.config.selection.top_fraction, pool_size(inputs.candidates))
        later = plan.config.finetune.epochs * steps_per_epoch(k, plan.config.finetune.batch_size)
    spec = warmup_spec(
        plan.config.warmup,
        plan.model,
        tokens=inputs.tokens,
        candidates=inputs.trainable,
        later_steps=later,
        seed=plan.config.seed,
    )
    return _paid(spec, plan)


def _paid(spec: TrainingSpec, plan: RunPlan) -> TrainingSpec:
    return spec.model_copy(update={"run_id": plan.run_id})


def _space(plan: RunPlan, checkpoint: CheckpointRef) -> FeatureSpace:
    return feature_space(plan.model, checkpoint, plan.config.features, plain=False, seed=plan.config.seed)


def _sides(
    plan: RunPlan,
    inputs: Inputs,
    settings: SelectionSettings,
    *,
    first: FeatureSpace,
    counted: tuple[tuple[FeatureSpace, ...], tuple[float, ...]],
) -> Sides:
    own = ModelTokens(model=plan.model, pool=inputs.tokens, validation=inputs.validation_tokens)
    return sides_of(
        settings,
        plan.config.clusters,
        first=first,
        counted=list(zip(*counted, strict=True)),
        tokens=(own, inputs.proxy),
    )


def _featurize_sides(plan: RunPlan, inputs: Inputs, sides: Sides, *, first: FeatureSpace) -> None:
    for item in side_passes(sides, inputs.drawable, inputs.target):
        _featurize(plan, item, first=first)


def _featurize_pool(
    plan: RunPlan, inputs: Inputs, spaces: tuple[FeatureSpace, ...], *, first: FeatureSpace
) -> None:
    ids = tuple(candidate_ids(inputs.drawable))
    for space in spaces:
        _featurize(plan, FeaturePass(space=space, tokens=inputs.tokens, sample_ids=ids), first=first)


def _featurize_target(
    plan: RunPlan, inputs: Inputs, spaces: tuple[FeatureSpace, ...], *, first: FeatureSpace
) -> None:
    ids, tokens = tuple(validation_ids(inputs.target)), inputs.validation_tokens
    for space in spaces:
        _featurize(plan, FeaturePass(space=plain_space(space), tokens=tokens, sample_ids=ids), first=first)


def _featurize(plan: RunPlan, item: FeaturePass, *, first: FeatureSpace) -> None:
    jobs = plan_jobs(
        item.space,
        item.tokens,
        item.sample_ids,
        workspace=plan.workspace,
        execution=plan.execution,
        run_id=plan.run_id,
        states=kept_states(item.space, first),
    )
    if jobs:
        futures = featurize_shard.map(jobs, unmapped(plan.workspace), unmapped(plan.execution))
        show_progress(f"features-{item.space.kind}", futures)


def _cluster(plan: RunPlan, inputs: Inputs, sides: Sides) -> ArtifactRef:
    spec = ClusterSpec(
        space=sides.clusters,
        tokens=sides.tokens,
        parts=sides.parts,
        candidates=inputs.drawable,
        settings=plan.config.clusters,
        features=plan.config.features,
        seed=plan.config.seed,
    )
    return cluster_pool(spec, plan.workspace)


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


def _with_spaces(
    spec: DrawSpec,
    spaces: tuple[FeatureSpace, ...],
    weights: tuple[float, ...],
    *,
    clustering: ArtifactRef,
    sides: Sides,
) -> DrawSpec:
    seen = {"clustering": clustering, "first_space": sides.clusters, "context": sides.context}
    return spec.model_copy(update={"spaces": spaces, "weights": weights} | seen)


def _trajectory(subject: str, periods: list[PeriodDraws], trainings: list[ArtifactRef]) -> Trajectory:
    return Trajectory(
        subject=subject,
        periods=tuple(periods),
        checkpoint=checkpoint_refs(trainings[-1])[-1],
        trainings=tuple(trainings),
    )
