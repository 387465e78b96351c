"""Backups looked into, and one put in the place of the catalog.

Reads the catalog and its backups; replaces the catalog, and sets the replaced file aside in `backups/`.
"""

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from clusterucb_core.errors import CatalogBusy, ClusterUcbError
from clusterucb_core.frozen import Frozen
from clusterucb_core.store.backup_files import (
    BackupFile,
    BackupKind,
    folder_beside,
    new_backup_path,
    restoring_path,
)
from clusterucb_core.store.connection import wait_for_catalog
from clusterucb_core.store.copying import discard, identifier, log_beside
from clusterucb_core.store.damage import damage_told
from clusterucb_core.store.migration import ensure_schema
from clusterucb_core.store.schema import check_schema, schema_version
from clusterucb_core.store.statements import frame, rows, run, run_on_frame

Stamp = tuple[tuple[int, int, int], ...]
# What a restored catalog must know of the one that it replaces: tables, and the columns that they began with.
_CARRIED = {
    "withdrawals": ("sample_id", "at", "reason"),
    "erasures": ("sample_id", "at", "reason"),
    "artifact_roots": ("path",),
}
_KNOWN_OF = {
    **_CARRIED,
    "selections": ("selection_version", "selection_key"),
    "pools": ("pool_version",),
    "exports": ("path", "selection_version"),
    "restorations": ("highest_selection", "highest_pool"),
}


class BackupState(Frozen):
    """One backup and what was found in it; `fault` says why it cannot be restored, None where it can."""

    path: str
    made_at: datetime
    kind: BackupKind
    bytes: int
    schema_version: int | None = None
    selections: tuple[int, ...] = ()
    fault: str | None = None


class Known(Frozen):
    """What a catalog knows that a backup of it may not, table by table; `unread` are damaged tables."""

    tables: dict[str, Any]
    unread: tuple[str, ...]

    def column(self, table: str, name: str) -> list[Any]:
        """Return a column of a table that was read; nothing of one that is not there."""
        return self.tables[table][name].to_list() if table in self.tables else []


def inspect_backup(file: BackupFile) -> BackupState:
    """Read every block of a backup that holds rows, and return what is in it."""
    state = BackupState(
        path=str(file.path), made_at=file.made_at, kind=file.kind, bytes=file.path.stat().st_size
    )
    try:
        with _read_only(file.path) as con:
            check_schema(con, older=True)
            for (table,) in rows(con, "SELECT table_name FROM duckdb_tables()"):
                rows(con, f"SELECT sum(hash(every)) FROM {identifier(table)} AS every")  # noqa: S608
            found = rows(con, "SELECT selection_version FROM selections ORDER BY ALL")
            return state.model_copy(
                update={
                    "schema_version": schema_version(con),
                    "selections": tuple(version for (version,) in found),
                }
            )
    except (ClusterUcbError, duckdb.Error) as error:
        return state.model_copy(update={"fault": " ".join(str(error).split())})


def read_known(catalog: Path) -> Known:
    """Return what can be read of a catalog that is to be replaced, of whatever schema it is."""
    if not catalog.is_file():
        return Known(tables={}, unread=())
    tables: dict[str, pl.DataFrame] = {}
    unread: list[str] = []
    try:
        with _read_only(catalog) as con:
            there = {name for (name,) in rows(con, "SELECT table_name FROM duckdb_tables()")}
            for table in sorted(there & set(_KNOWN_OF)):
                names = ", ".join(map(identifier, _KNOWN_OF[table]))
                try:
                    tables[table] = frame(con, f"SELECT {names} FROM {table}")  # noqa: S608
                except duckdb.Error:  # whatever is the matter: the file is kept, and the table is named
                    unread.append(table)
    except (ClusterUcbError, duckdb.Error) as error:
        if isinstance(error, CatalogBusy):
            raise
        return Known(tables={}, unread=tuple(sorted(_KNOWN_OF)))
    return Known(tables=tables, unread=tuple(unread))


@contextmanager
def restoring_draft(backup: Path, catalog: Path) -> Generator[Path]:
    """Make a copy of a backup beside the catalog, of the present schema, for the block."""
    draft = restoring_path(catalog)
    draft.parent.mkdir(parents=True, exist_ok=True)
    discard(draft)
    try:
        shutil.copyfile(backup, draft)
        if (log := log_beside(backup)).is_file():  # of a damaged catalog that was set aside with its log
            shutil.copyfile(log, log_beside(draft))
        with damage_told(backup), duckdb.connect(draft) as con:
            run(con, "SET TimeZone = 'UTC'")
            ensure_schema(con, None)
        yield draft
    finally:
        discard(draft)


def carry_over(con: duckdb.DuckDBPyConnection, known: Known) -> dict[str, int]:
    """Insert what a replaced catalog knew of removals and folders; return how many rows were new, by table.

    Call it inside a transaction.
    """
    return {table: _insert_new(con, table, known) for table in _CARRIED if table in known.tables}


def record_restoration(
    con: duckdb.DuckDBPyConnection,
    names: tuple[str, str | None],
    *,
    highest_selection: int,
    highest_pool: int,
) -> None:
    """Record, inside the transaction of the caller, a restoration and the numbers not to be given again.

    Args:
        con: the restored catalog.
        names: the backup, and the file that the replaced catalog became.
        highest_selection: the highest selection version that was ever published, as far as that is known.
        highest_pool: the same of pool versions.
    """
    run(
        con,
        "INSERT INTO restorations (backup, replaced, highest_selection, highest_pool) VALUES (?, ?, ?, ?)",
        [*names, highest_selection, highest_pool],
    )


def replaced_path(catalog: Path) -> Path | None:
    """Return where a catalog is to be set aside; None where there is none."""
    folder = folder_beside(catalog)
    return new_backup_path(folder, ending="-replaced") if catalog.is_file() else None


def stamp(catalog: Path) -> Stamp:
    """Return what changes as a catalog is written to, after its write-ahead log was moved into it."""
    path = catalog.resolve()
    _fold_log(path)
    return _stamp(path)


def put_in_place(draft: Path, catalog: Path, *, aside: Path | None, read_at: Stamp) -> None:
    """Replace the catalog by a finished draft, and keep the file that it replaces with its write-ahead log.

    Killed at any moment, the old or the new catalog bears the name; an old log beside the new one is no part
    of it, and DuckDB refuses the two.

    Args:
        draft: a file beside the catalog.
        catalog: the file to replace.
        aside: where it is kept; None where there is none.
        read_at: its stamp from before it was read, so that nothing that was recorded since is left behind.

    Raises:
        CatalogBusy: another process has the catalog open, or has written to it.
    """
    path = catalog.resolve()
    if aside is None:
        log_beside(path).unlink(missing_ok=True)
        draft.replace(path)
        return
    aside.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path), _locked(draft):  # as DuckDB locks them: nobody opens either until both are in place
        if _stamp(path) != read_at:
            raise CatalogBusy(
                f"another process wrote to the catalog {path} meanwhile; restore again; nothing was changed"
            )
        try:
            os.link(path, aside)
        except OSError:  # another file system, or one without links
            shutil.copy2(path, aside)
        if log_beside(path).is_file():
            shutil.copy2(log_beside(path), log_beside(aside))
        shutil.copymode(path, draft)
        draft.replace(path)
        log_beside(path).unlink(missing_ok=True)


def _stamp(path: Path) -> Stamp:
    found = [file.stat() for file in (path, log_beside(path)) if file.is_file()]
    return tuple((file.st_ino, file.st_size, file.st_mtime_ns) for file in found)


def _fold_log(path: Path) -> None:
    """Move the write-ahead log of a catalog that can be opened into it."""
    if not log_beside(path).is_file():
        return
    with suppress(duckdb.Error):  # damaged, or held: then the log is kept as it is
        duckdb.connect(path).close()


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CatalogBusy(
                f"another process has the catalog {path} open; end it, or wait for it, and restore again; "
                "nothing was changed"
            ) from error
        yield


@contextmanager
def _read_only(path: Path) -> Generator[duckdb.DuckDBPyConnection]:
    with damage_told(path):
        con = wait_for_catalog(path, partial(duckdb.connect, path, read_only=True), timeout_s=60.0)
        try:
            run(con, "SET TimeZone = 'UTC'")
            yield con
        finally:
            con.close()


def _insert_new(con: duckdb.DuckDBPyConnection, table: str, known: Known) -> int:
    def count() -> int:
        return rows(con, f"SELECT count(*) FROM {table}")[0][0]  # noqa: S608 - a fixed name

    before = count()
    insert = f"INSERT INTO {table} BY NAME SELECT * FROM incoming ON CONFLICT DO NOTHING"  # noqa: S608
    run_on_frame(con, insert, known.tables[table])
    return count() - before
