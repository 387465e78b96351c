"""The files of the catalog's backups: where they lie, what their names tell, and which may be removed.

Lists the folder `backups/` of a state folder.

- `catalog-<UTC time>.duckdb` is made by `maintenance`, and goes as newer ones are made;
- `catalog-<UTC time>-schema-<n>.duckdb` is made before schema `n` is migrated, and goes as the next one is;
- `catalog-<UTC time>-replaced.duckdb` was set aside by `restore`, and stays.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from clusterucb_core.workspace import Workspace

FOLDER = "backups"
_RESTORING = ".restoring"
BackupKind = Literal["maintenance", "migration", "replaced", "other"]
_TIME = "%Y%m%dT%H%M%S%fZ"
_NAME = re.compile(r"catalog-(?P<time>\d{8}T\d{12}Z)(?:-schema-(?P<schema>\d+)|-(?P<replaced>replaced))?")


@dataclass(frozen=True)
class BackupFile:
    """One file of the folder; `schema` is that before a migration, None for the other kinds."""

    path: Path
    made_at: datetime
    kind: BackupKind
    schema: int | None = None

    @property
    def told_time(self) -> str:
        """The time as messages tell it."""
        return time_told(self.made_at)


def time_told(made_at: datetime) -> str:
    """Return when a backup was made, as messages tell it."""
    return f"{made_at:%Y-%m-%d %H:%M:%S} UTC"


def backup_folder(workspace: Workspace) -> Path:
    """Return the folder of the catalog's backups."""
    return folder_beside(workspace.catalog)


def folder_beside(catalog: Path) -> Path:
    """Return the folder of the backups of a catalog."""
    return catalog.parent / FOLDER


def new_backup_path(folder: Path, *, ending: str = "") -> Path:
    """Return the name for a backup that is made now, such as with the ending `-schema-4`."""
    return folder / f"catalog-{datetime.now(UTC):{_TIME}}{ending}.duckdb"


def restoring_path(catalog: Path) -> Path:
    """Return where a restoration prepares what will be the catalog: beside it, to take its name at once."""
    return catalog.resolve().with_name(f"{catalog.name}{_RESTORING}")


def catalog_backups(workspace: Workspace) -> list[Path]:
    """Return all copies of the catalog, the oldest first: an erasure rewrites every one."""
    return [file.path for file in backup_files(backup_folder(workspace))]


def backup_files(folder: Path) -> list[BackupFile]:
    """Return the files of a folder that are copies of the catalog, the oldest first."""
    found = map(described, folder.glob("catalog-*.duckdb"))
    return sorted(found, key=lambda file: (file.made_at, file.path))


def newest_backup(catalog: Path) -> BackupFile | None:
    """Return the backup that a restoration would begin with; none of what one has set aside."""
    kept = [file for file in backup_files(folder_beside(catalog)) if file.kind != "replaced"]
    return kept[-1] if kept else None


def superseded(folder: Path, *, keep: int) -> list[Path]:
    """Return the backups of `maintenance` that are older than the newest `keep`."""
    return [file.path for file in backup_files(folder) if file.kind == "maintenance"][:-keep]


def older_of_schema(folder: Path, schema: int) -> list[Path]:
    """Return all but the newest of the backups made before a schema was migrated."""
    return [file.path for file in backup_files(folder) if file.schema == schema][:-1]


def is_backup(path: Path) -> bool:
    """Return whether a path is that of a backup and not of a catalog in use."""
    return path.parent.name == FOLDER and path.name.startswith("catalog-")


def described(path: Path) -> BackupFile:
    """Return what the name of a file tells."""
    found = _NAME.fullmatch(path.stem)
    if found is None:  # a copy that somebody named
        return BackupFile(path, datetime.fromtimestamp(path.stat().st_mtime, UTC), "other")
    made_at = datetime.strptime(found["time"], _TIME).replace(tzinfo=UTC)
    if found["schema"]:
        return BackupFile(path, made_at, "migration", int(found["schema"]))
    return BackupFile(path, made_at, "replaced" if found["replaced"] else "maintenance")
