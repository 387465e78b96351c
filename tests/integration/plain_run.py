"""The whole pipeline in plain Python: every stage called in order, without Prefect and without MLflow.

As a script: `python plain_run.py CONFIG HOME [key.path=value ...]`.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from clusterucb_core.config import load_config
from clusterucb_core.outcome import RunResult, keep_result
from clusterucb_core.planning import RunPlan, plan_run
from clusterucb_core.records import ArtifactRef
from clusterucb_core.selection import SelectionSettings, is_bandit, share_of
from clusterucb_core.stages.clusters import ClusterSpec, run_clustering
from clusterucb_core.stages.draws import DrawSpec, run_draws
from clusterucb_core.stages.evaluation import evaluation_spec, run_evaluation
from clusterucb_core.stages.features import feature_space, plan_jobs, run_shard
from clusterucb_core.stages.intake import (
    CandidatesSpec,
    TokensSpec,
    candidate_ids,
    pool_size,
    run_candidates,
    run_ingest,
    run_target,
    run_tokens,
    validation_ids,
)
from clusterucb_core.stages.models import CheckpointRef, FeatureSpace
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
from clusterucb_core.stages.summary import SubjectSummary, Trajectory, measures, summarise, work_since
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
    target: ArtifactRef
    tokens: ArtifactRef
    validation_tokens: ArtifactRef
    test_tokens: ArtifactRef
    candidates: ArtifactRef


@dataclass(frozen=True)
class Finished:
    plan: RunPlan
    inputs: Inputs
    pool_version: PoolVersion
    trajectories: tuple[Trajectory, ...]
    summaries: tuple[SubjectSummary, ...]
    result: RunResult

    @property
    def chosen(self) -> Trajectory:
        return self.trajectories[0]


def run_plain(config: Path, home: Path, *overrides: str, baselines: tuple[str, ...] = ()) -> Finished:
    """Run the pipeline for the configured policy and for baselines (`full`, `random:<i>`)."""
    started_at = time.time()
    plan = plan_run(*load_config(config, overrides), home=home)
    inputs = prepare(plan)
    pool_version = publish_pool(inputs.pool, plan.workspace)
    trajectories = tuple(select(plan, inputs, subject=name) for name in ("selection", *baselines))
    versions = publish_run(trajectories[0].periods, facts_of(plan, pool_version), plan.workspace)
    spaces = [space for item in trajectories for period in item.periods for space in period.spec.spaces]
    clusterings = [period.spec.clustering for period in trajectories[0].periods if period.spec.clustering]
    publish_features(spaces, inputs.candidates, clusterings[:1], plan.workspace)
    summaries = evaluate(plan, inputs, trajectories, version=versions[-1])
    trainings = [ref for item in trajectories for ref in item.trainings]
    result = RunResult(
        run_id=plan.run_id,
        pool_version=pool_version.pool_version,
        versions=tuple(versions),
        selection_version=versions[-1],
        subjects=summaries,
        work=work_since(started_at, spaces, trainings, plan.workspace),
        checkpoints=tuple(ref.path for ref in trainings),
        mlflow_run_id=None,
        seconds=round(time.time() - started_at, 1),
    )
    keep_result(plan, result)
    return Finished(plan, inputs, pool_version, trajectories, summaries, result)


def prepare(plan: RunPlan) -> Inputs:
    """From files to the samples that may be drawn."""
    model, seed = plan.model, plan.config.seed
    pool = run_ingest(plan.ingest, plan.workspace)
    target = run_target(plan.target, plan.workspace)
    limit = plan.config.pool.max_samples
    pool_tokens = TokensSpec(source=pool, split="pool", model=model, max_samples=limit, seed=seed)
    tokens = run_tokens(pool_tokens, plan.workspace)
    validation = run_tokens(TokensSpec(source=target, split="validation", model=model), plan.workspace)
    test = run_tokens(TokensSpec(source=target, split="test", model=model), plan.workspace)
    candidates = run_candidates(CandidatesSpec(pool=pool, tokens=tokens, target=target), plan.workspace)
    return Inputs(pool, target, tokens, validation, test, candidates)


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
        featurize_target(plan, inputs, spaces)
        for space in spaces[:1] if is_bandit(settings.policy) else spaces:
            featurize(plan, space, inputs.tokens, candidate_ids(inputs.candidates))
        found = cluster(plan, inputs, spaces[0])
        update = {"spaces": spaces, "weights": checkpoint_weights(checkpoints)}
        spec = spec.model_copy(update=update | {"clustering": found, "first_space": spaces[0]})
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
    for period in range(1, config.finetune.epochs + 1):
        policy = "full" if period == 1 and is_bandit(settings.policy) else settings.policy
        spec = draw_spec(
            plan, inputs, settings.model_copy(update={"policy": policy}), period=period, seed=seed
        )
        if policy != "random":
            space = space_of(plan, checkpoint)
            featurize_target(plan, inputs, (space,))
            if policy == "full":
                featurize(plan, space, inputs.tokens, candidate_ids(inputs.candidates))
            clustering = clustering or cluster(plan, inputs, first)
            update = {"spaces": (space,), "weights": (1.0,)}
            spec = spec.model_copy(update=update | {"clustering": clustering, "first_space": first})
        draws = run_draws(spec, plan.workspace, plan.execution)
        periods.append(PeriodDraws(spec=spec, draws=draws))
        training = period_spec(config.finetune, warmup=warm, start=checkpoint, draws=draws, period=period)
        trainings.append(run_training(training, plan.workspace, plan.execution))
        checkpoint = checkpoint_refs(trainings[-1])[-1]
    return trajectory(subject, periods, trainings)


def evaluate(plan, inputs, trajectories, *, version: int) -> tuple[SubjectSummary, ...]:
    """Measure every subject and the base model, and record what came out."""
    base = Trajectory(subject="zero_shot", periods=(), checkpoint=None, trainings=())
    subjects = [*trajectories, base]
    evaluations = [evaluate_one(plan, inputs, subject) for subject in subjects]
    oracle = [trajectories[0].periods[0].spec] if plan.config.mode == "static" else []
    summaries = tuple(
        summarise(subject, done, pool=inputs.pool, oracle_spaces=oracle, workspace=plan.workspace)
        for subject, done in zip(subjects, evaluations, strict=True)
    )
    task = plan.config.only_target.name
    rows = [row for s in summaries for row in measures(s, task=task, version=version, run_id=plan.run_id)]
    named = [Evaluated(subject=s.subject, evaluation=e) for s, e in zip(subjects, evaluations, strict=True)]
    publish_evaluations(named, rows, version=version, run_id=plan.run_id, workspace=plan.workspace)
    return summaries


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
    config, tokens, candidates = plan.config, inputs.tokens, inputs.candidates
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


def featurize_target(plan: RunPlan, inputs: Inputs, spaces: tuple[FeatureSpace, ...]) -> None:
    for space in spaces:
        featurize(plan, plain_space(space), inputs.validation_tokens, validation_ids(inputs.target))


def featurize(plan: RunPlan, space: FeatureSpace, tokens: ArtifactRef, sample_ids: list[str]) -> None:
    """Compute the features that a space lacks, shard by shard."""
    keywords = {"workspace": plan.workspace, "execution": plan.execution, "run_id": plan.run_id}
    for job in plan_jobs(space, tokens, sample_ids, **keywords):
        run_shard(job, plan.workspace, plan.execution)


def cluster(plan: RunPlan, inputs: Inputs, space: FeatureSpace) -> ArtifactRef:
    config, candidates = plan.config, inputs.candidates
    spec = ClusterSpec(
        space=space,
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
        selection_key=plan.selection_key,
        mode=plan.config.mode,
        policy=plan.config.selection.policy,
        pool_version=pool_version.pool_version,
        config=plan.config.model_dump(mode="json"),
        config_digest=plan.config_digest,
        code_version=plan.code_version,
    )


if __name__ == "__main__":
    run_plain(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
