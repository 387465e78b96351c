"""Restoring the catalog from a backup, without what was lost to it being taken for something else.

Reads and replaces the catalog; reads its backups and the results of runs. What was withdrawn or erased since
stays withdrawn and erased, and numbers of versions that are lost are not given again.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import duckdb

from clusterucb_core.erasure.traces import shows_trace, traces_of
from clusterucb_core.errors import DamagedCatalog, MissingArtifact, StaleArtifact
from clusterucb_core.frozen import Frozen
from clusterucb_core.outcome import RESULT, STAGE
from clusterucb_core.store import (
    ErasedRows,
    erase_rows,
    erased_ids,
    list_selections,
    rewrite_catalog,
    sample_origins,
)
from clusterucb_core.store.backup_files import BackupFile, backup_files, backup_folder, described
from clusterucb_core.store.restoring import (
    BackupState,
    Known,
    carry_over,
    inspect_backup,
    put_in_place,
    read_known,
    record_restoration,
    replaced_path,
    restoring_draft,
    stamp,
)
from clusterucb_core.workspace import Workspace


class Restored(Frozen):
    """What a restoration did.

    Attributes:
        backup: the backup restored.
        replaced: the file that the replaced catalog became; None where there was none.
        lost: selection versions that only the replaced catalog holds; None where it could not be read.
        returned: selection versions that only the backup holds; None where that could not be told.
        carried: rows of withdrawals, erasures and artifact folders that were recorded after the backup.
        erased: rows that lost their text, because it was erased after the backup.
        exports: files that only the replaced catalog knows of: an erasure will not find them.
        unread: tables of the replaced catalog that could not be read.
    """

    backup: BackupState
    replaced: str | None
    lost: tuple[int, ...] | None
    returned: tuple[int, ...] | None
    carried: dict[str, int]
    erased: ErasedRows
    exports: tuple[str, ...]
    unread: tuple[str, ...]


def list_backups(workspace: Workspace) -> list[BackupState]:
    """Read every backup of the catalog whole, and return what is in each, the oldest first."""
    return [inspect_backup(file) for file in backup_files(backup_folder(workspace))]


def choose_backup(workspace: Workspace, named: str | None) -> BackupState:
    """Return the backup to restore: the one named, or the newest that is whole and that no restoration made.

    Args:
        workspace: the state folder.
        named: the name of a file in its folder of backups, or a path.

    Raises:
        MissingArtifact: there is none, or none of that name.
        DamagedCatalog: the one named, or every one, is damaged.
        StaleArtifact: the one named is no catalog, or one of a newer version.
    """
    known = backup_files(backup_folder(workspace))
    if named is not None:
        return _usable(inspect_backup(_named(known, named, backup_folder(workspace))))
    own = [file for file in reversed(known) if file.kind != "replaced"]
    if not own:
        raise MissingArtifact(
            f"there is no backup of the catalog in {backup_folder(workspace)}; `clusterucb maintenance` "
            "makes one"
        )
    whole = (state for state in map(inspect_backup, own) if state.fault is None)
    return next(whole, None) or _usable(inspect_backup(own[0]))


def restore_catalog(backup: BackupState, workspace: Workspace) -> Restored:
    """Put a backup in the place of the catalog.

    No run may be going on.

    Args:
        backup: what `choose_backup` returned.
        workspace: the state folder.

    Raises:
        CatalogBusy: another process has the catalog open, or wrote to it meanwhile; nothing was changed.
    """
    catalog, aside = workspace.catalog, replaced_path(workspace.catalog)
    before_reading = stamp(catalog)
    known = read_known(catalog)
    with restoring_draft(Path(backup.path), catalog) as draft:
        names = Path(backup.path).name, None if aside is None else aside.name
        change = partial(_change, known=known, workspace=workspace, names=names)
        carried, erased, held = rewrite_catalog(draft, change)
        put_in_place(draft, catalog, aside=aside, read_at=before_reading)
    keys, numbers = (known.column("selections", name) for name in ("selection_key", "selection_version"))
    before, readable = dict(zip(keys, numbers, strict=True)), "selections" not in known.unread
    lost = tuple(sorted(version for key, version in before.items() if key not in held))
    back = tuple(sorted(version for key, version in held.items() if key not in before))
    return Restored(
        backup=backup,
        replaced=None if aside is None else str(aside),
        lost=lost if readable else None,
        returned=back if readable else None,
        carried=carried,
        erased=erased,
        exports=_exports(known, lost),
        unread=known.unread,
    )


def _change(
    con: duckdb.DuckDBPyConnection, *, known: Known, workspace: Workspace, names: tuple[str, str | None]
) -> tuple[dict[str, int], ErasedRows, dict[str, int]]:
    """Bring a restored catalog to what was removed since; return rows carried and erased, and its keys."""
    later = sorted(set(known.column("erasures", "sample_id")) - erased_ids(con))
    texts = [json.loads(text) for text in sample_origins(con, later)["messages"].drop_nulls()]
    erased = erase_rows(con, later, partial(shows_trace, traces_of(texts)))
    carried = carry_over(con, known)
    held = {item.selection_key: item.selection_version for item in list_selections(con)}
    selections, pools = _numbers_given(workspace)
    selections += known.column("selections", "selection_version")
    selections += known.column("restorations", "highest_selection")
    pools += known.column("pools", "pool_version") + known.column("restorations", "highest_pool")
    record_restoration(
        con, names, highest_selection=max(selections, default=0), highest_pool=max(pools, default=0)
    )
    return carried, erased, held


def _numbers_given(workspace: Workspace) -> tuple[list[int], list[int]]:
    """Return selection and pool versions that the kept results of runs name."""
    found = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in Workspace(home=workspace.home).artifacts.glob(f"{STAGE}/[!.]*/{RESULT}")
    ]
    selections = [number for result in found for number in result["versions"]]
    return selections, [result["pool_version"] for result in found]


def _named(known: Sequence[BackupFile], named: str, folder: Path) -> BackupFile:
    for file in known:
        if named in (file.path.name, file.path.stem) or Path(named).absolute() == file.path.absolute():
            return file
    if Path(named).is_file():  # from elsewhere: a copy on another disk
        return described(Path(named).absolute())
    raise MissingArtifact(
        f"there is no backup {named!r} in {folder}; `clusterucb restore --list` shows those that there are"
    )


def _usable(state: BackupState) -> BackupState:
    if state.fault is None:
        return state
    kind = DamagedCatalog if "damaged" in state.fault else StaleArtifact
    raise kind(f"the backup cannot be restored: {state.fault}; nothing was changed")


def _exports(known: Known, lost: Sequence[int]) -> tuple[str, ...]:
    pairs = zip(known.column("exports", "path"), known.column("exports", "selection_version"), strict=True)
    return tuple(sorted(path for path, version in pairs if version in lost))
