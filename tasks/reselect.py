"""Tasks of re-selection: what a run leaves to be followed, and what came of following it."""

from collections.abc import Sequence

from prefect import task

from clusterucb_core import reselection, trails
from clusterucb_core.records import ArtifactRef
from clusterucb_core.reselection import TargetReselection
from clusterucb_core.stages import pool_change
from clusterucb_core.stages.pool_change import PoolChange
from clusterucb_core.trails import RunTrail
from clusterucb_core.workspace import Workspace


@task(name="keep trail")
def keep_trail(trail: RunTrail, workspace: Workspace) -> None:
    """Keep what a re-selection may follow."""
    trails.keep_trail(trail, workspace)


@task(name="compare pools")
def compare_pools(now: ArtifactRef, before: ArtifactRef, at_warmup: ArtifactRef) -> PoolChange:
    """Count what joined and left the candidates."""
    return pool_change.pool_change(now, before, at_warmup)


@task(name="compare selections")
def compare_selections(
    now: RunTrail, before: RunTrail, changes: Sequence[PoolChange], workspace: Workspace
) -> tuple[TargetReselection, ...]:
    """Bring together what changed in the selections of all targets."""
    return reselection.compare_trails(now, before, changes, workspace)
