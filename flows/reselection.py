"""Re-selection: a changed pool is selected from again, at the checkpoints of the run that is followed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.config import RunConfig
from clusterucb_core.errors import MissingArtifact
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.planning import RunPlan, check_evaluation, plan_run
from clusterucb_core.reselection import ReselectionResult, unchanged
from clusterucb_core.stages.pool_change import PoolChange, asks_for_warmup
from clusterucb_core.stages.publication import Evaluated
from clusterucb_core.stages.summary import (
    TargetOutcome,
    Trajectory,
    Work,
    clusterings_of,
    measures,
    spaces_of,
    trainings_of,
)
from clusterucb_core.trails import RunTrail, check_trails, followed_trail, newest_trails, trail_of
from clusterucb_core.workspace import Workspace, stage_key
from flows.calls import at_work, called_here
from flows.evaluation import evaluate_subject
from flows.following import follow, train_on
from flows.home import configure_tracking, state_folder
from flows.pipeline import run_stages
from flows.preparation import Inputs, prepare
from flows.progress import show_differences
from flows.publication import publish, report, trail_to_follow
from flows.watching import Watch, figures_of, note_versions, watched
from tasks.evaluate import count_work, record_evaluations, summarise_subject
from tasks.featurize import record_features
from tasks.reselect import compare_pools, compare_selections, keep_trail
from tasks.tracking import start_tracking


def run_reselection(
    config: RunConfig, execution: ExecutionSettings, *, new_warmup: bool = False, train: bool = False
) -> ReselectionResult:
    """Select again in this process; a pool whose files are the same returns without starting a flow."""
    plan = plan_run(config, execution, home=state_folder())
    trail = followed_trail(plan)
    if not new_warmup and trail.pool_key == stage_key(plan.ingest):
        return unchanged(trail)
    with called_here(execution):
        return reselect(config, execution, new_warmup=new_warmup, train=train)


@flow(name="clusterucb-reselect", persist_result=False)
def reselect(
    config: RunConfig | None = None,
    execution: ExecutionSettings = ExecutionSettings(),  # noqa: B008
    new_warmup: bool = False,
    train: bool = False,
) -> ReselectionResult:
    """Select again after the pool changed, computing only what is new.

    Args:
        config: The run to follow: the newest one with the same settings, model and targets. Without it the
            newest run of all, whose sources are read again.
        execution: How to execute it; it changes no result.
        new_warmup: Run the whole pipeline again instead of following the checkpoints of an earlier run.
        train: Train and evaluate an adapter on the new selection.
    """
    with at_work(execution):
        return _reselect(
            config or newest_config(state_folder()), execution, new_warmup=new_warmup, train=train
        )


def newest_config(home: Path) -> RunConfig:
    """Return the configuration of the newest run.

    Raises:
        MissingArtifact: there is no run to follow.
        StaleArtifact: the trail of a newer run is damaged.
    """
    workspace = Workspace(home=str(home))
    trails = newest_trails(workspace)
    check_trails(workspace, after=trails[0] if trails else None)
    if not trails:
        raise MissingArtifact(
            f"no finished run is there to be followed in {home}; start one with `clusterucb run CONFIG`"
        )
    return trails[0].config


@dataclass(frozen=True)
class _Change:
    """A changed pool: the run, what its files became for each target, and how that differs from before."""

    plan: RunPlan
    trail: RunTrail
    targets: list[Inputs]
    changes: list[PoolChange]
    watch: Watch
    started_at: float


def _reselect(
    config: RunConfig, execution: ExecutionSettings, *, new_warmup: bool, train: bool
) -> ReselectionResult:
    started_at = time.time()
    configure_tracking(state_folder())
    plan = plan_run(config, execution, home=state_folder())
    trail = followed_trail(plan)
    run_id = fingerprint("reselect", plan.run_id, trail.run_id)
    plan = plan.model_copy(update={"run_id": run_id})
    if train:
        check_evaluation(plan, load=True)
    with watched(plan) as watch:
        targets = prepare(plan)
        changes = [
            compare_pools(inputs.candidates, target.candidates, trail.at_warmup)
            for inputs, target in zip(targets, trail.targets, strict=True)
        ]
        change = _Change(plan, trail, targets, changes, watch, started_at)
        if new_warmup or any(asks_for_warmup(of_target, config.reselect) for of_target in changes):
            return _start_over(change)
        if all(of_target.is_none for of_target in changes):
            return unchanged(trail)
        return _follow(change, train=train)


def _start_over(change: _Change) -> ReselectionResult:
    result = run_stages(change.plan.config, change.plan.execution)
    now = trail_of(result.run_id, change.plan.workspace)
    return _told(change, now, work=result.work, mlflow_run_id=result.mlflow_run_id, new_warmup=True)


def _follow(change: _Change, *, train: bool) -> ReselectionResult:
    plan, before, inputs = change.plan, change.trail, change.targets
    tracking = start_tracking(plan, flow_run.id, flow_run.ui_url)
    chosen = [
        follow(plan, own, target.chosen, of_target)
        for own, target, of_target in zip(inputs, before.targets, change.changes, strict=True)
    ]
    versions = publish(plan, inputs[0], chosen, tracking.mlflow_run_id)
    note_versions(change.watch, versions)
    record_features(spaces_of(chosen), inputs[0].drawable, clusterings_of(chosen), plan.workspace)
    if train:
        chosen = [train_on(plan, own, item) for own, item in zip(inputs, chosen, strict=True)]
    outcomes = [
        _outcome(plan, own, item, numbers)
        for own, item, numbers in zip(inputs, chosen, versions, strict=True)
    ]
    work = count_work(change.started_at, spaces_of(chosen), trainings_of(chosen), plan.workspace)
    report(plan, tracking, outcomes, figures_of(change.watch, inputs[0].pool_version, work))
    subjects = [(item,) for item in chosen]
    now = trail_to_follow(plan, inputs, outcomes, subjects, at_warmup=before.at_warmup)
    keep_trail(now, plan.workspace)
    return _told(change, now, work=work, mlflow_run_id=tracking.mlflow_run_id, new_warmup=False)


def _told(
    change: _Change, now: RunTrail, *, work: Work, mlflow_run_id: str | None, new_warmup: bool
) -> ReselectionResult:
    """Show what the new selections changed, and return it with what it took."""
    targets = compare_selections(now, change.trail, change.changes, change.plan.workspace)
    show_differences(targets, now.run_id)
    return ReselectionResult(
        run_id=now.run_id,
        followed_run_id=change.trail.run_id,
        pool_version=now.pool_version,
        changed=True,
        new_warmup=new_warmup,
        targets=targets,
        work=work,
        mlflow_run_id=mlflow_run_id,
        seconds=round(time.time() - change.started_at, 1),
    )


def _outcome(plan: RunPlan, inputs: Inputs, chosen: Trajectory, versions: Sequence[int]) -> TargetOutcome:
    """Bring together what one target came to, and record how the adapter does where one was trained."""
    evaluated = None if chosen.checkpoint is None else evaluate_subject(plan, inputs, chosen.checkpoint)
    summary = summarise_subject(chosen, evaluated, inputs.pool, [], plan.workspace)
    rows = measures(summary, target=inputs.name, version=versions[-1], run_id=plan.run_id)
    named = (
        []
        if evaluated is None
        else [Evaluated(target=inputs.name, subject=chosen.subject, evaluation=evaluated)]
    )
    record_evaluations(named, rows, versions[-1], plan.run_id, plan.workspace)
    return TargetOutcome(
        target=inputs.name,
        chosen=chosen,
        versions=tuple(versions),
        subjects=(summary,),
        evaluations=() if evaluated is None else (evaluated,),
        test_tokens=inputs.test_tokens,
    )
