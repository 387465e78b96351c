"""Backups of the catalog: whole copies below `backups/` of the state folder, the newest ones kept."""

from pathlib import Path

from clusterucb_core.errors import MissingArtifact
from clusterucb_core.store.backup_files import backup_folder, new_backup_path, restoring_path, superseded
from clusterucb_core.store.connection import open_catalog
from clusterucb_core.store.copying import discard, save_copy
from clusterucb_core.workspace import Workspace

KEPT_BACKUPS = 7


def backup_catalog(workspace: Workspace, keep: int = KEPT_BACKUPS) -> Path:
    """Copy the catalog as it stands and remove old copies.

    While it is copied no other process can open the catalog; its write-ahead log is moved into the file.

    Args:
        workspace: where the catalog lies.
        keep: how many of the newest backups stay, 1 or more. Those made before a migration and what a
            restoration has set aside are not counted, and stay.

    Returns:
        The file `backups/catalog-<UTC time>.duckdb`, which any DuckDB client reads.

    Raises:
        MissingArtifact: there is no catalog.
        CatalogBusy: another process kept it.
        DamagedCatalog: a part of it cannot be read; the earlier backups stay.
        ValueError: `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} would remove the backup just made; keep 1 or more")
    if not workspace.catalog.is_file():
        raise MissingArtifact(f"there is no catalog at {workspace.catalog}; run `clusterucb run` first")
    folder = backup_folder(workspace)
    with open_catalog(workspace.catalog) as con:
        final = new_backup_path(folder)
        save_copy(con, final)
    for old in superseded(folder, keep=keep):
        discard(old)
    return final


def remove_drafts(workspace: Workspace) -> int:
    """Remove what killed processes left of backups, copies of them and restorations; return how many files.

    The write-ahead log of a copy that was set aside is a part of it, and stays. No restoration may go on.
    """
    found = backup_folder(workspace).glob("catalog*")
    left = [path for path in found if path.suffix != ".duckdb" and not _is_log_of_backup(path)]
    draft = restoring_path(workspace.catalog)
    left += draft.parent.glob(f"{draft.name}*")
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def _is_log_of_backup(path: Path) -> bool:
    return path.name.endswith(".duckdb.wal") and path.with_suffix("").is_file()
