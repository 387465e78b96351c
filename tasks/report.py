"""Tasks that record how long a run took, and write the pages about its selections."""

from collections.abc import Sequence

from prefect import task

from clusterucb_core import report
from clusterucb_core.records import StageTime
from clusterucb_core.stages import publication
from clusterucb_core.stages.summary import TargetOutcome
from clusterucb_core.workspace import Workspace


@task(name="record times")
def record_times(stages: Sequence[StageTime], run_id: str, flow_run_id: str, workspace: Workspace) -> None:
    """Record what the stages of this flow run took."""
    publication.publish_times(stages, run_id=run_id, flow_run_id=flow_run_id, workspace=workspace)


@task(name="write reports")
def write_reports(outcomes: Sequence[TargetOutcome], run_id: str, workspace: Workspace) -> dict[str, str]:
    """Write a page about the last selection of each target."""
    return report.run_reports(outcomes, run_id, workspace)
