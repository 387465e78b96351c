"""What a run leaves: its versions, published for all its targets at once, reports on them, and its trail."""

from collections.abc import Sequence
from itertools import islice

from prefect.runtime import flow_run

from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.publication import RunFacts
from clusterucb_core.stages.summary import TargetOutcome, Trajectory
from clusterucb_core.tracks import RunFigures
from clusterucb_core.trails import RunTrail, TargetTrail, run_trail
from flows.preparation import Inputs
from tasks.report import record_times, write_reports
from tasks.selection import publish_selection
from tasks.tracking import Tracking, finish_tracking


def publish(
    plan: RunPlan, inputs: Inputs, chosen: Sequence[Trajectory], mlflow_run_id: str | None
) -> list[list[int]]:
    """Publish the selections of all targets at once, and return the versions of each."""
    periods = [period for trajectory in chosen for period in trajectory.periods]
    versions = iter(publish_selection(periods, _facts(plan, inputs, mlflow_run_id), plan.workspace))
    return [list(islice(versions, len(trajectory.periods))) for trajectory in chosen]


def report(plan: RunPlan, tracking: Tracking, outcomes: Sequence[TargetOutcome], figures: RunFigures) -> None:
    """Record what the run took, write a page about each target's last selection, and tell the tracker."""
    record_times(figures.stages, plan.run_id, flow_run.id or "", plan.workspace)
    pages = write_reports(outcomes, plan.run_id, plan.workspace)
    finish_tracking(plan, tracking, outcomes, figures, pages)


def trail_to_follow(
    plan: RunPlan,
    targets: Sequence[Inputs],
    outcomes: Sequence[TargetOutcome],
    subjects: Sequence[Sequence[Trajectory]],
    *,
    at_warmup: ArtifactRef,
) -> RunTrail:
    """Return what a re-selection may follow of a run.

    Args:
        plan: the run.
        targets: what its files became, target by target.
        outcomes: what it came to for each.
        subjects: the trajectories of each, the selection's first.
        at_warmup: the candidates that its warmup was drawn from.
    """
    found = [
        TargetTrail(
            target=inputs.name,
            candidates=inputs.candidates,
            versions=outcome.versions,
            subjects=tuple(of_target),
            evaluations=outcome.evaluations,
        )
        for inputs, outcome, of_target in zip(targets, outcomes, subjects, strict=True)
    ]
    used = [ref for inputs in targets for ref in inputs.artifacts]
    return run_trail(plan, targets[0].pool_version, found, at_warmup=at_warmup, inputs=used)


def _facts(plan: RunPlan, inputs: Inputs, mlflow_run_id: str | None) -> RunFacts:
    return RunFacts(
        run_id=plan.run_id,
        selection_keys=plan.selection_keys,
        mode=plan.config.mode,
        policy=plan.config.selection.policy,
        pool_version=inputs.pool_version.pool_version,
        config=plan.config.model_dump(mode="json"),
        config_digest=plan.config_digest,
        code_version=plan.code_version,
        mlflow_run_id=mlflow_run_id,
        flow_run_id=flow_run.id,
    )
