"""The whole pipeline in plain Python: every stage called in order, without Prefect and without MLflow.

As a script: `python plain_run.py CONFIG HOME [key.path=value ...]`.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from clusterucb_core.config import load_config
from clusterucb_core.outcome import RunResult, keep_result, target_results
from clusterucb_core.planning import RunPlan, plan_run
from clusterucb_core.records import ArtifactRef
from clusterucb_core.selection import SelectionSettings, is_bandit, needs_gradient_pass, share_of
from clusterucb_core.stages.accounting import feature_spaces
from clusterucb_core.stages.clusters import ClusterSpec, run_clustering
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.draws import run_draws
from clusterucb_core.stages.evaluation import evaluation_spec, run_evaluation
from clusterucb_core.stages.features import feature_space, plan_jobs, run_shard
from clusterucb_core.stages.intake import (
    CandidatesSpec,
    TokensSpec,
    candidate_ids,
    pool_size,
    run_candidates,
    run_ingest,
    run_shared,
    run_target,
    run_tokens,
    shared_spec,
    validation_ids,
)
from clusterucb_core.stages.models import CheckpointRef, FeatureSpace, ModelRef
from clusterucb_core.stages.publication import (
    Evaluated,
    PeriodDraws,
    RunFacts,
    publish_evaluations,
    publish_features,
    publish_pool,
    publish_run,
)
from clusterucb_core.stages.scores import plain_space
from clusterucb_core.stages.sides import FeaturePass, ModelTokens, Sides, kept_states, side_passes, sides_of
from clusterucb_core.stages.summary import (
    SubjectSummary,
    TargetOutcome,
    Trajectory,
    measures,
    summarise,
    work_since,
)
from clusterucb_core.stages.training import (
    checkpoint_refs,
    checkpoint_weights,
    finetune_spec,
    period_spec,
    run_training,
    warmup_spec,
)
from clusterucb_core.store import PoolVersion
from clusterucb_core.training import steps_per_epoch


@dataclass(frozen=True)
class Inputs:
    pool: ArtifactRef
    tokens: ArtifactRef
    drawable: ArtifactRef
    trainable: ArtifactRef
    name: str
    target: ArtifactRef
    validation_tokens: ArtifactRef
    test_tokens: ArtifactRef
    candidates: ArtifactRef
    proxy: ModelTokens | None


@dataclass(frozen=True)
class Finished:
    plan: RunPlan
    targets: list[Inputs]
    pool_version: PoolVersion
    outcomes: list[TargetOutcome]
    result: RunResult

    @property
    def inputs(self) -> Inputs:
        return self.targets[0]

    @property
    def chosen(self) -> Trajectory:
        return self.outcomes[0].chosen

    @property
    def summaries(self) -> tuple[SubjectSummary, ...]:
        return self.outcomes[0].subjects


def run_plain(config: Path, home: Path, *overrides: str, baselines: tuple[str, ...] = ()) -> Finished:
    """Run the pipeline for the configured policy and for baselines (`full`, `random:<i>`)."""
    started_at = time.time()
    plan = plan_run(*load_config(config, overrides), home=home)
    targets = prepare(plan)
    pool_version = publish_pool(targets[0].pool, plan.workspace)
    chosen = [select(plan, inputs, subject="selection") for inputs in targets]
    periods = [period for trajectory in chosen for period in trajectory.periods]
    versions = publish_run(periods, facts_of(plan, pool_version), plan.workspace)
    subjects = [
        [own, *(select(plan, baseline_inputs(targets, inputs, name), subject=name) for name in baselines)]
        for inputs, own in zip(targets, chosen, strict=True)
    ]
    trajectories = [trajectory for of_target in subjects for trajectory in of_target]
    spaces = [s for item in trajectories for period in item.periods for s in feature_spaces(period.spec)]
    clusterings = [period.spec.clustering for period in periods if period.spec.clustering]
    publish_features(spaces, targets[0].drawable, clusterings[:1], plan.workspace)
    each = len(chosen[0].periods)
    outcomes = [
        evaluate(plan, inputs, of_target, versions=versions[each * number : each * (number + 1)])
        for number, (inputs, of_target) in enumerate(zip(targets, subjects, strict=True))
    ]
    trainings = [ref for item in trajectories for ref in item.trainings]
    result = RunResult(
        run_id=plan.run_id,
        pool_version=pool_version.pool_version,
        versions=tuple(versions),
        selection_version=outcomes[0].versions[-1],
        subjects=outcomes[0].subjects,
        targets=target_results(outcomes),
        work=work_since(started_at, spaces, trainings, plan.workspace),
        checkpoints=tuple(ref.path for ref in trainings),
        mlflow_run_id=None,
        seconds=round(time.time() - started_at, 1),
    )
    keep_result(plan, result)
    return Finished(plan, targets, pool_version, outcomes, result)


def prepare(plan: RunPlan) -> list[Inputs]:
    """From files to the samples that may be drawn, target by target."""
    model, seed, workspace = plan.model, plan.config.seed, plan.workspace
    pool = run_ingest(plan.ingest, workspace)
    limit = plan.config.pool.max_samples
    pool_tokens = TokensSpec(source=pool, split="pool", model=model, max_samples=limit, seed=seed)
    tokens = run_tokens(pool_tokens, workspace)
    targets = [run_target(spec, workspace) for spec in plan.targets]
    candidates = [
        run_candidates(CandidatesSpec(pool=pool, tokens=tokens, target=target), workspace)
        for target in targets
    ]
    return [
        Inputs(
            pool=pool,
            tokens=tokens,
            drawable=run_shared(shared_spec(candidates, "any"), workspace),
            trainable=run_shared(shared_spec(candidates, "every"), workspace),
            name=spec.settings.name,
            target=target,
            validation_tokens=run_tokens(
                TokensSpec(source=target, split="validation", model=model), workspace
            ),
            test_tokens=run_tokens(TokensSpec(source=target, split="test", model=model), workspace),
            candidates=own,
            proxy=proxy_tokens(plan, plan.proxy, pool=pool, target=target) if plan.proxy else None,
        )
        for spec, target, own in zip(plan.targets, targets, candidates, strict=True)
    ]


def proxy_tokens(plan: RunPlan, model: ModelRef, *, pool: ArtifactRef, target: ArtifactRef) -> ModelTokens:
    limit, seed = plan.config.pool.max_samples, plan.config.seed
    samples = TokensSpec(source=pool, split="pool", model=model, max_samples=limit, seed=seed)
    rows = TokensSpec(source=target, split="validation", model=model)
    pair = [run_tokens(spec, plan.workspace) for spec in (samples, rows)]
    return ModelTokens(model=model, pool=pair[0], validation=pair[1])


def baseline_inputs(targets: list[Inputs], inputs: Inputs, name: str) -> Inputs:
    """A choice by chance is one for all targets and holds no leak into any of them; it is found again."""
    return replace(targets[0], candidates=targets[0].trainable) if name.startswith("random") else inputs


def select(plan: RunPlan, inputs: Inputs, *, subject: str) -> Trajectory:
    """Select for one subject and train on the selection."""
    settings, seed = plan.config.selection, plan.config.seed
    if subject != "selection":
        name, _, number = subject.partition(":")
        settings, seed = settings.model_copy(update={"policy": name}), seed + int(number or 0)
    if plan.config.mode == "static":
        return select_once(plan, inputs, settings, subject=subject, seed=seed)
    return select_every_epoch(plan, inputs, settings, subject=subject, seed=seed)


def select_once(
    plan: RunPlan, inputs: Inputs, settings: SelectionSettings, *, subject: str, seed: int
) -> Trajectory:
    """Static mode: one selection over all warmup checkpoints, then a new adapter trained on it."""
    config, trainings = plan.config, []
    spec = draw_spec(plan, inputs, settings, period=1, seed=seed)
    if settings.policy != "random":
        trainings.append(warmup(plan, inputs, later_steps=None))
        checkpoints = checkpoint_refs(trainings[0])
        spaces = tuple(space_of(plan, checkpoint) for checkpoint in checkpoints)
        weights = checkpoint_weights(checkpoints)
        sides = sides_for(plan, inputs, settings, first=spaces[0], counted=zip(spaces, weights, strict=True))
        featurize_target(plan, inputs, spaces, first=spaces[0])
        for space in () if is_bandit(settings.policy) else spaces:
            featurize(plan, whole_pool(inputs, space), first=spaces[0])
        featurize_sides(plan, inputs, sides, first=spaces[0])
        found = cluster(plan, inputs, sides)
        spec = with_spaces(spec, spaces, weights, clustering=found, sides=sides)
    draws = run_draws(spec, plan.workspace, plan.execution)
    training = finetune_spec(config.finetune, plan.model, tokens=inputs.tokens, draws=draws, seed=config.seed)
    trainings.append(run_training(training, plan.workspace, plan.execution))
    return trajectory(subject, [PeriodDraws(spec=spec, draws=draws)], trainings)


def select_every_epoch(
    plan: RunPlan, inputs: Inputs, settings: SelectionSettings, *, subject: str, seed: int
) -> Trajectory:
    """Dynamic mode: select before each epoch at the checkpoint reached, and train on."""
    config = plan.config
    epoch = steps_per_epoch(
        share_of(settings.top_fraction, pool_size(inputs.candidates)), config.finetune.batch_size
    )
    trainings = [warmup(plan, inputs, later_steps=config.finetune.epochs * epoch)]
    warm = warmup_of(plan, inputs, config.finetune.epochs * epoch)
    checkpoint, periods, clustering = checkpoint_refs(trainings[0])[-1], [], None
    first = space_of(plan, checkpoint)
    full_first = needs_gradient_pass(settings, config.clusters)
    for period in range(1, config.finetune.epochs + 1):
        drawn = settings.model_copy(update={"policy": "full"}) if period == 1 and full_first else settings
        spec = draw_spec(plan, inputs, drawn, period=period, seed=seed)
        if drawn.policy != "random":
            space = space_of(plan, checkpoint)
            sides = sides_for(plan, inputs, drawn, first=first, counted=[(space, 1.0)])
            featurize_target(plan, inputs, (space,), first=first)
            if drawn.policy == "full":
                featurize(plan, whole_pool(inputs, space), first=first)
            featurize_sides(plan, inputs, sides, first=first)
            clustering = clustering or cluster(plan, inputs, sides)
            spec = with_spaces(spec, (space,), (1.0,), clustering=clustering, sides=sides)
        draws = run_draws(spec, plan.workspace, plan.execution)
        periods.append(PeriodDraws(spec=spec, draws=draws))
        training = period_spec(config.finetune, warmup=warm, start=checkpoint, draws=draws, period=period)
        trainings.append(run_training(training, plan.workspace, plan.execution))
        checkpoint = checkpoint_refs(trainings[-1])[-1]
    return trajectory(subject, periods, trainings)


def evaluate(plan, inputs, trajectories, *, versions: list[int]) -> TargetOutcome:
    """Measure every subject and the base model, and record what came out."""
    base = Trajectory(subject="zero_shot", periods=(), checkpoint=None, trainings=())
    subjects = [*trajectories, base]
    evaluations = [evaluate_one(plan, inputs, subject) for subject in subjects]
    oracle = [trajectories[0].periods[0].spec] if plan.config.mode == "static" else []
    summaries = tuple(
        summarise(subject, done, pool=inputs.pool, oracle_spaces=oracle, workspace=plan.workspace)
        for subject, done in zip(subjects, evaluations, strict=True)
    )
    keywords = {"version": versions[-1], "run_id": plan.run_id}
    rows = [row for s in summaries for row in measures(s, target=inputs.name, **keywords)]
    named = [
        Evaluated(target=inputs.name, subject=s.subject, evaluation=e)
        for s, e in zip(subjects, evaluations, strict=True)
    ]
    publish_evaluations(named, rows, workspace=plan.workspace, **keywords)
    return TargetOutcome(
        target=inputs.name, chosen=trajectories[0], versions=tuple(versions), subjects=summaries
    )


def evaluate_one(plan: RunPlan, inputs: Inputs, subject: Trajectory) -> ArtifactRef:
    spec = evaluation_spec(
        plan.config.evaluate,
        plan.model,
        checkpoint=subject.checkpoint,
        target=inputs.target,
        test_tokens=inputs.test_tokens,
        seed=plan.config.seed,
    )
    return run_evaluation(spec, plan.workspace, plan.execution, plan.config.evaluate)


def warmup(plan: RunPlan, inputs: Inputs, *, later_steps: int | None) -> ArtifactRef:
    return run_training(warmup_of(plan, inputs, later_steps), plan.workspace, plan.execution)


def warmup_of(plan: RunPlan, inputs: Inputs, later_steps: int | None):
    config, tokens, candidates = plan.config, inputs.tokens, inputs.trainable
    return warmup_spec(
        config.warmup,
        plan.model,
        tokens=tokens,
        candidates=candidates,
        later_steps=later_steps,
        seed=config.seed,
    )


def space_of(plan: RunPlan, checkpoint: CheckpointRef) -> FeatureSpace:
    return feature_space(plan.model, checkpoint, plan.config.features, plain=False, seed=plan.config.seed)


def featurize_target(
    plan: RunPlan, inputs: Inputs, spaces: tuple[FeatureSpace, ...], *, first: FeatureSpace
) -> None:
    ids, tokens = tuple(validation_ids(inputs.target)), inputs.validation_tokens
    for space in spaces:
        item = FeaturePass(space=plain_space(space), tokens=tokens, sample_ids=ids)
        featurize(plan, item, first=first)


def sides_for(plan: RunPlan, inputs: Inputs, settings: SelectionSettings, *, first, counted) -> Sides:
    own = ModelTokens(model=plan.model, pool=inputs.tokens, validation=inputs.validation_tokens)
    tokens = (own, inputs.proxy)
    return sides_of(settings, plan.config.clusters, first=first, counted=list(counted), tokens=tokens)


def whole_pool(inputs: Inputs, space: FeatureSpace) -> FeaturePass:
    ids = tuple(candidate_ids(inputs.drawable))
    return FeaturePass(space=space, tokens=inputs.tokens, sample_ids=ids)


def featurize_sides(plan: RunPlan, inputs: Inputs, sides: Sides, *, first: FeatureSpace) -> None:
    for item in side_passes(sides, inputs.drawable, inputs.target):
        featurize(plan, item, first=first)


def with_spaces(spec: DrawSpec, spaces, weights, *, clustering: ArtifactRef, sides: Sides) -> DrawSpec:
    seen = {"clustering": clustering, "first_space": sides.clusters, "context": sides.context}
    return spec.model_copy(update={"spaces": spaces, "weights": weights} | seen)


def featurize(plan: RunPlan, item: FeaturePass, *, first: FeatureSpace) -> None:
    """Compute the features that a space lacks, shard by shard."""
    keywords = {"workspace": plan.workspace, "execution": plan.execution, "run_id": plan.run_id}
    keywords["states"] = kept_states(item.space, first)
    for job in plan_jobs(item.space, item.tokens, item.sample_ids, **keywords):
        run_shard(job, plan.workspace, plan.execution)


def cluster(plan: RunPlan, inputs: Inputs, sides: Sides) -> ArtifactRef:
    config, candidates = plan.config, inputs.drawable
    spec = ClusterSpec(
        space=sides.clusters,
        tokens=sides.tokens,
        parts=sides.parts,
        candidates=candidates,
        settings=config.clusters,
        features=config.features,
        seed=config.seed,
    )
    return run_clustering(spec, plan.workspace)


def draw_spec(plan: RunPlan, inputs: Inputs, settings: SelectionSettings, *, period: int, seed: int):
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


def trajectory(subject: str, periods: list[PeriodDraws], trainings: list[ArtifactRef]) -> Trajectory:
    last = checkpoint_refs(trainings[-1])[-1]
    return Trajectory(subject=subject, periods=tuple(periods), checkpoint=last, trainings=tuple(trainings))


def facts_of(plan: RunPlan, pool_version: PoolVersion) -> RunFacts:
    return RunFacts(
        run_id=plan.run_id,
        selection_keys=plan.selection_keys,
        mode=plan.config.mode,
        policy=plan.config.selection.policy,
        pool_version=pool_version.pool_version,
        config=plan.config.model_dump(mode="json"),
        config_digest=plan.config_digest,
        code_version=plan.code_version,
    )


if __name__ == "__main__":
    run_plain(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
