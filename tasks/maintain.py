"""Tasks that keep a state folder in order."""

from prefect import task

from clusterucb_core import garbage
from clusterucb_core.garbage import Removed
from clusterucb_core.store import backup_catalog
from clusterucb_core.workspace import Workspace


@task(name="remove unneeded artifacts")
def remove_unneeded(workspace: Workspace, *, keep_runs: int, grace_s: float, dry_run: bool) -> Removed:
    """Remove artifacts that none of the newest runs needs."""
    return garbage.collect_garbage(workspace, keep_runs=keep_runs, grace_s=grace_s, dry_run=dry_run)


@task(name="back up catalog")
def backup(workspace: Workspace, keep: int) -> str:
    """Write a copy of the catalog, and keep the newest ones."""
    return str(backup_catalog(workspace, keep=keep))
