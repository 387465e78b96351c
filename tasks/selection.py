"""Tasks that draw and publish selections."""

from collections.abc import Sequence

from prefect import task

from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages import draws, publication
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.publication import PeriodDraws, RunFacts
from clusterucb_core.workspace import Workspace
from tasks.caching import artifact_key
from tasks.clock import clocked


@task(
    name="draw selection",
    task_run_name="draw {spec.settings.policy}, period {spec.period}",
    cache_key_fn=artifact_key,
    persist_result=True,
    result_serializer="json",
    on_completion=[clocked],
)
def draw_selection(spec: DrawSpec, workspace: Workspace, execution: ExecutionSettings) -> ArtifactRef:
    """Draw under the budget and select the best of what was drawn."""
    return draws.run_draws(spec, workspace, execution)


@task(name="publish selection")
def publish_selection(periods: Sequence[PeriodDraws], facts: RunFacts, workspace: Workspace) -> list[int]:
    """Write the run's selection versions in one transaction."""
    return publication.publish_run(periods, facts, workspace)
