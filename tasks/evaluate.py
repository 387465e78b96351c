"""Tasks that evaluate models and record what came out."""

from collections.abc import Sequence

from prefect import task

from clusterucb_core import outcome
from clusterucb_core.evaluation import EvaluateSettings
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.outcome import RunResult
from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages import evaluation, publication, summary
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.evaluation import EvaluationSpec
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.stages.publication import Evaluated
from clusterucb_core.stages.summary import SubjectSummary, Trajectory, Work
from clusterucb_core.store import EvaluationRow
from clusterucb_core.workspace import Workspace
from tasks.caching import artifact_key
from tasks.clock import clocked


@task(cache_key_fn=artifact_key, persist_result=True, result_serializer="json", on_completion=[clocked])
def evaluate(
    spec: EvaluationSpec, workspace: Workspace, execution: ExecutionSettings, settings: EvaluateSettings
) -> ArtifactRef:
    """Measure the test loss and the tasks."""
    return evaluation.run_evaluation(spec, workspace, execution, settings)


@task(name="summarise subject", on_completion=[clocked])
def summarise_subject(
    trajectory: Trajectory,
    evaluated: ArtifactRef | None,
    pool: ArtifactRef,
    oracle: Sequence[DrawSpec],
    workspace: Workspace,
) -> SubjectSummary:
    """Bring together what a subject selected and how it did."""
    return summary.summarise(trajectory, evaluated, pool=pool, oracle_spaces=oracle, workspace=workspace)


@task(name="record evaluations")
def record_evaluations(
    evaluated: Sequence[Evaluated],
    measures: Sequence[EvaluationRow],
    version: int,
    run_id: str,
    workspace: Workspace,
) -> None:
    """Record the results of all subjects in the catalog."""
    publication.publish_evaluations(evaluated, measures, version=version, run_id=run_id, workspace=workspace)


@task(name="count work")
def count_work(
    started_at: float, spaces: Sequence[FeatureSpace], trainings: Sequence[ArtifactRef], workspace: Workspace
) -> Work:
    """Count what this call computed itself."""
    return summary.work_since(started_at, spaces, trainings, workspace)


@task(name="keep outcome")
def keep_outcome(plan: RunPlan, result: RunResult) -> None:
    """Keep the run's result, so that a repeat finds it."""
    outcome.keep_result(plan, result)
