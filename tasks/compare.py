"""Tasks that compare policies and budgets on the rewards of full-gradient selection."""

from collections.abc import Sequence

from prefect import task

from clusterucb_core import comparison
from clusterucb_core.comparison import ComparisonResult
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages import comparison as replays
from clusterucb_core.stages import comparison_summary
from clusterucb_core.stages.comparison import CompareSpec, Setting
from clusterucb_core.stages.comparison_summary import SettingSummary, Trained
from clusterucb_core.workspace import Workspace
from tasks.caching import artifact_key
from tasks.clock import clocked


@task(
    name="compare policies",
    cache_key_fn=artifact_key,
    persist_result=True,
    result_serializer="json",
    on_completion=[clocked],
)
def compare_policies(spec: CompareSpec, workspace: Workspace, execution: ExecutionSettings) -> ArtifactRef:
    """Replay every policy at every budget."""
    return replays.run_comparison(spec, workspace, execution)


@task(name="summarise comparison")
def summarise_comparison(
    replayed: ArtifactRef, settings: Sequence[Setting], trained: Sequence[Trained]
) -> list[SettingSummary]:
    """Bring together what each policy at each budget came to."""
    return comparison_summary.summarise_settings(replayed, settings, trained)


@task(name="keep comparison")
def keep_comparison(
    plan: RunPlan, result: ComparisonResult, replayed: Sequence[ArtifactRef]
) -> ComparisonResult:
    """Write the table and the chart, and keep the result, so that a repeat finds it."""
    return comparison.keep_comparison(plan, result, replayed)
