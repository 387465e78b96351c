"""Maintenance of a state folder: artifacts that no kept run needs are removed, the catalog is backed up."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import Field

from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.frozen import Frozen
from clusterucb_core.garbage import Removed
from clusterucb_core.workspace import Workspace
from flows.calls import called_here, plain_faults
from flows.home import state_folder
from flows.turns import turn
from tasks.maintain import backup, remove_unneeded

SECONDS_AN_HOUR = 3600.0


class Maintained(Frozen):
    """What a maintenance came to: what it removed, and the backup that it made (None in a dry run)."""

    removed: Removed
    backup: str | None


def run_maintenance(
    *, keep_runs: int, keep_backups: int, grace_hours: float, storage_root: str | None, dry_run: bool
) -> Maintained:
    """Maintain the state folder in this process; what each argument says is told where the flow is."""
    with called_here(ExecutionSettings(storage_root=storage_root)):
        return maintenance(
            keep_runs=keep_runs,
            keep_backups=keep_backups,
            grace_hours=grace_hours,
            storage_root=storage_root,
            dry_run=dry_run,
        )


@flow(name="clusterucb-maintenance", persist_result=False)
def maintenance(
    keep_runs: Annotated[int, Field(ge=1)] = 10,
    keep_backups: Annotated[int, Field(ge=1)] = 7,
    grace_hours: Annotated[float, Field(ge=0)] = 72.0,
    storage_root: str | None = None,
    dry_run: bool = False,
) -> Maintained:
    """Remove artifacts that no kept run needs, and back the catalog up.

    Args:
        keep_runs: The newest runs whose artifacts stay. Selections and evaluations of older runs stay in the
            catalog, but no re-selection can follow them.
        keep_backups: The newest backups of the catalog that stay.
        grace_hours: What is younger stays, whatever it is.
        storage_root: Folder or object store of artifacts, where one is set. No other state folder may
            share it: what only its runs need would be removed.
        dry_run: Only tell what would be removed.
    """
    workspace = Workspace(home=str(state_folder()), storage_root=storage_root)
    with plain_faults(ExecutionSettings(storage_root=storage_root)), turn(state_folder()):
        removed = remove_unneeded(
            workspace, keep_runs=keep_runs, grace_s=grace_hours * SECONDS_AN_HOUR, dry_run=dry_run
        )
        kept = None if dry_run else backup(workspace, keep_backups)
    show_removed(removed)
    return Maintained(removed=removed, backup=kept)


def show_removed(removed: Removed) -> None:
    """Leave what was removed as a table artifact."""
    rows = [
        {"stage": stage, "artifacts": count, "bytes": removed.bytes[stage], "dry run": removed.dry_run}
        for stage, count in removed.artifacts.items()
    ]
    create_table_artifact(key="maintenance", table=rows, description="Artifacts that no kept run needed")
