"""What a re-selection came to: the new versions, and their difference to those that it followed."""

from collections.abc import Sequence

from clusterucb_core.frozen import Frozen
from clusterucb_core.stages.clusters import ClusterFit, read_fit
from clusterucb_core.stages.pool_change import PoolChange
from clusterucb_core.stages.summary import Work
from clusterucb_core.store import SelectionDifference, open_catalog, selection_difference
from clusterucb_core.trails import RunTrail, TargetTrail
from clusterucb_core.workspace import Workspace


class TargetReselection(Frozen):
    """What a re-selection came to for one target; without a change `versions` are those that were there.

    Attributes:
        target: the target's name.
        versions: its selection versions, period by period.
        selection_version: the last of them.
        followed_version: the one that it followed.
        change: what joined and left its candidates; None where nothing did.
        fit: how the clusters fit the pool now; None where nothing was clustered or nothing changed.
        difference: what changed from the followed version; None where nothing did.
    """

    target: str
    versions: tuple[int, ...]
    selection_version: int
    followed_version: int
    change: PoolChange | None = None
    fit: ClusterFit | None = None
    difference: SelectionDifference | None = None


class ReselectionResult(Frozen):
    """What a re-selection came to.

    Attributes:
        run_id: of the run that made the versions.
        followed_run_id: the run that was followed.
        pool_version: the pool that was selected from.
        changed: whether the pool had changed, so that there are new versions.
        new_warmup: whether the whole pipeline was run again.
        targets: what came of each target, in the order of the configuration.
        work: what this call computed itself.
        mlflow_run_id: the MLflow run, None where there is none.
        seconds: wall time of the call.
    """

    run_id: str
    followed_run_id: str
    pool_version: int
    changed: bool
    new_warmup: bool
    targets: tuple[TargetReselection, ...]
    work: Work
    mlflow_run_id: str | None
    seconds: float


def unchanged(trail: RunTrail) -> ReselectionResult:
    """Return the result of a re-selection that found nothing new: the versions of the run it would follow."""
    return ReselectionResult(
        run_id=trail.run_id,
        followed_run_id=trail.run_id,
        pool_version=trail.pool_version,
        changed=False,
        new_warmup=False,
        targets=tuple(
            TargetReselection(
                target=target.target,
                versions=target.versions,
                selection_version=target.versions[-1],
                followed_version=target.versions[-1],
            )
            for target in trail.targets
        ),
        work=Work(gradient_evaluations=0, trainings=0),
        mlflow_run_id=None,
        seconds=0.0,
    )


def compare_trails(
    now: RunTrail, before: RunTrail, changes: Sequence[PoolChange], workspace: Workspace
) -> tuple[TargetReselection, ...]:
    """Return what came of each target beside the version that it followed.

    Args:
        now: the run that selected again.
        before: the run that it followed.
        changes: of each target's candidates.
        workspace: where the catalog lies.
    """
    pairs = list(zip(before.targets, now.targets, strict=True))
    with open_catalog(workspace.catalog, read_only=True) as con:
        found = [selection_difference(con, old.versions[-1], new.versions[-1]) for old, new in pairs]
    return tuple(
        TargetReselection(
            target=new.target,
            change=change,
            versions=new.versions,
            selection_version=new.versions[-1],
            followed_version=old.versions[-1],
            fit=_fit(new),
            difference=difference,
        )
        for (old, new), change, difference in zip(pairs, changes, found, strict=True)
    )


def _fit(target: TargetTrail) -> ClusterFit | None:
    clustering = target.chosen.periods[-1].spec.clustering
    return None if clustering is None else read_fit(clustering)
