"""The pipeline: from raw instruction files to a versioned selection and an evaluated adapter."""

import logging
import time
from collections.abc import Sequence

from prefect import flow
from prefect.runtime import flow_run

from clusterucb_core.config import RunConfig
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.outcome import RunResult, finished_result, target_results
from clusterucb_core.planning import RunPlan, check_evaluation, plan_run
from clusterucb_core.stages.publication import Evaluated
from clusterucb_core.stages.summary import (
    TargetOutcome,
    Trajectory,
    clusterings_of,
    measures,
    separation_warning,
    spaces_of,
    trainings_of,
)
from flows.calls import at_work, called_here
from flows.evaluation import evaluate_subject
from flows.home import configure_tracking, state_folder
from flows.orchestrator import server_fault
from flows.preparation import Inputs, chance_inputs, prepare
from flows.progress import show_subjects
from flows.publication import publish, report, trail_to_follow
from flows.selection import select
from flows.watching import Watch, figures_of, note_versions, watched
from tasks.evaluate import count_work, keep_outcome, record_evaluations, summarise_subject
from tasks.featurize import record_features
from tasks.reselect import keep_trail
from tasks.tracking import start_tracking

logger = logging.getLogger(__name__)


def run_pipeline(config: RunConfig, execution: ExecutionSettings) -> RunResult:
    """Run the pipeline in this process.

    A run whose inputs and settings were seen before returns its result without starting a flow.
    """
    plan = plan_run(config, execution, home=state_folder())
    known = finished_result(plan)
    if known is not None:
        return known
    with called_here(execution):
        try:
            return clusterucb(config, execution)
        except Exception as error:
            # the result is kept before the Prefect server is told that the run has ended
            known = finished_result(plan) if server_fault(error) else None
            if known is None:
                raise
            logger.warning("the run is complete, but its page is not: %s", server_fault(error))
            return known


@flow(name="clusterucb", persist_result=False)
def clusterucb(config: RunConfig, execution: ExecutionSettings = ExecutionSettings()) -> RunResult:  # noqa: B008
    """Select training samples for each target, train on them, and evaluate.

    Args:
        config: What to compute.
        execution: How to execute it; it changes no result.
    """
    with at_work(execution):
        return run_stages(config, execution)


def run_stages(config: RunConfig, execution: ExecutionSettings) -> RunResult:
    """Run every stage, in the flow run that is under way."""
    started_at = time.time()
    configure_tracking(state_folder())
    plan = plan_run(config, execution, home=state_folder())
    check_evaluation(plan, load=True)
    with watched(plan) as watch:
        return _run(plan, watch, started_at=started_at)


def _run(plan: RunPlan, watch: Watch, *, started_at: float) -> RunResult:
    tracking = start_tracking(plan, flow_run.id, flow_run.ui_url)
    targets = prepare(plan)
    chosen = [select(plan, inputs, subject="selection") for inputs in targets]
    # before any baseline: what those compute besides is not what the selections took
    versions = publish(plan, targets[0], chosen, tracking.mlflow_run_id)
    note_versions(watch, versions)
    chance = [select(plan, chance_inputs(targets[0]), subject=name) for name in _random_baselines(plan)]
    full = [_full_baseline(plan, inputs) for inputs in targets]
    subjects = [[own, *chance, *best] for own, best in zip(chosen, full, strict=True)]
    trajectories = [subject for of_target in subjects for subject in of_target]
    record_features(
        spaces_of(trajectories), targets[0].drawable, clusterings_of(trajectories), plan.workspace
    )
    outcomes = [
        _evaluate(plan, inputs, of_target, versions=numbers)
        for inputs, of_target, numbers in zip(targets, subjects, versions, strict=True)
    ]
    work = count_work(started_at, spaces_of(trajectories), trainings_of(trajectories), plan.workspace)
    figures = figures_of(watch, targets[0].pool_version, work)
    report(plan, tracking, outcomes, figures)
    show_subjects(outcomes, plan.run_id)
    result = RunResult(
        run_id=plan.run_id,
        pool_version=targets[0].pool_version.pool_version,
        versions=tuple(number for numbers in versions for number in numbers),
        selection_version=versions[0][-1],
        subjects=outcomes[0].subjects,
        targets=target_results(outcomes),
        work=work,
        checkpoints=tuple(ref.path for ref in trainings_of(trajectories)),
        mlflow_run_id=tracking.mlflow_run_id,
        seconds=round(time.time() - started_at, 1),
        warnings=tuple(
            filter(None, [separation_warning(item.subjects[0], item.target) for item in outcomes])
        ),
    )
    trail = trail_to_follow(plan, targets, outcomes, subjects, at_warmup=targets[0].trainable)
    keep_trail(trail, plan.workspace)
    # last: a run whose result is kept is never taken up again, so nothing may be missing after it
    keep_outcome(plan, result)
    return result


def _random_baselines(plan: RunPlan) -> list[str]:
    wanted = "random" in plan.config.evaluate.baselines
    return [f"random:{index}" for index in range(plan.config.evaluate.random_seeds)] if wanted else []


def _full_baseline(plan: RunPlan, inputs: Inputs) -> list[Trajectory]:
    wanted = "full" in plan.config.evaluate.baselines
    return [select(plan, inputs, subject="full")] if wanted else []


def _evaluate(
    plan: RunPlan, inputs: Inputs, trajectories: Sequence[Trajectory], *, versions: Sequence[int]
) -> TargetOutcome:
    subjects = list(trajectories)
    if "zero_shot" in plan.config.evaluate.baselines:
        subjects.append(Trajectory(subject="zero_shot", periods=(), checkpoint=None, trainings=()))
    evaluated = [evaluate_subject(plan, inputs, subject.checkpoint) for subject in subjects]
    # one warmup serves every subject of a static run, so the selection's checkpoints measure all of them
    oracle = [trajectories[0].periods[0].spec] if plan.config.mode == "static" else []
    summaries = [
        summarise_subject(subject, result, inputs.pool, oracle, plan.workspace)
        for subject, result in zip(subjects, evaluated, strict=True)
    ]
    target, version = inputs.name, versions[-1]
    rows = [
        row
        for item in summaries
        for row in measures(item, target=target, version=version, run_id=plan.run_id)
    ]
    named = [
        Evaluated(target=target, subject=subject.subject, evaluation=evaluation)
        for subject, evaluation in zip(subjects, evaluated, strict=True)
    ]
    record_evaluations(named, rows, version, plan.run_id, plan.workspace)
    return TargetOutcome(
        target=target,
        chosen=trajectories[0],
        versions=tuple(versions),
        subjects=tuple(summaries),
        evaluations=tuple(evaluated),
        test_tokens=inputs.test_tokens,
    )
