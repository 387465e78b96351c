"""The versions of a run: published for all its targets at once."""

from collections.abc import Sequence
from itertools import islice

from prefect.runtime import flow_run

from clusterucb_core.planning import RunPlan
from clusterucb_core.stages.publication import RunFacts
from clusterucb_core.stages.summary import Trajectory
from flows.preparation import Inputs
from tasks.selection import publish_selection


def publish(
    plan: RunPlan, inputs: Inputs, chosen: Sequence[Trajectory], mlflow_run_id: str | None
) -> list[list[int]]:
    """Publish the selections of all targets at once, and return the versions of each."""
    periods = [period for trajectory in chosen for period in trajectory.periods]
    versions = iter(publish_selection(periods, _facts(plan, inputs, mlflow_run_id), plan.workspace))
    return [list(islice(versions, len(trajectory.periods))) for trajectory in chosen]


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
