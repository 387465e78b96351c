"""Backups of the catalog: whole copies below `backups/` of the state folder, the newest ones kept."""

from datetime import UTC, datetime
from pathlib import Path

from clusterucb_core.errors import MissingArtifact
from clusterucb_core.store.connection import open_catalog
from clusterucb_core.store.rewriting import copy_database
from clusterucb_core.store.statements import rows, run
from clusterucb_core.workspace import Workspace

KEPT_BACKUPS = 7
_DRAFT = "catalog.draft"


def backup_catalog(workspace: Workspace, keep: int = KEPT_BACKUPS) -> Path:
    """Copy the catalog as it stands and remove old copies.

    While it is copied no other process can open the catalog; its write-ahead log is moved into the file.

    Args:
        workspace: where the catalog lies.
        keep: how many of the newest backups stay, 1 or more.

    Returns:
        The file `backups/catalog-<UTC time>.duckdb`, which any DuckDB client reads.

    Raises:
        MissingArtifact: there is no catalog.
        CatalogBusy: another process kept it.
        ValueError: `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} would remove the backup just made; keep 1 or more")
    if not workspace.catalog.is_file():
        raise MissingArtifact(f"there is no catalog at {workspace.catalog}; run `clusterucb run` first")
    folder = backup_folder(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    with open_catalog(workspace.catalog) as con:
        draft = folder / _DRAFT  # one process at a time gets here: the catalog is its lock
        run(con, "CHECKPOINT")
        ((name,),) = rows(con, "SELECT current_database()")
        copy_database(con, name, draft)
        run(con, "DETACH copied")
        final = folder / f"catalog-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.duckdb"
        draft.replace(final)
    for old in catalog_backups(workspace)[:-keep]:
        old.unlink(missing_ok=True)
    return final


def backup_folder(workspace: Workspace) -> Path:
    """Return the folder of the catalog's backups."""
    return Path(workspace.home) / "backups"


def catalog_backups(workspace: Workspace) -> list[Path]:
    """Return the backups of the catalog, the oldest first."""
    return sorted(backup_folder(workspace).glob("catalog-*.duckdb"))


def remove_drafts(workspace: Workspace) -> int:
    """Remove what killed processes left of backups and copies of them; return how many files."""
    left = [path for path in backup_folder(workspace).glob("catalog*") if path.suffix != ".duckdb"]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)
