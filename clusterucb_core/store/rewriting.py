"""Catalog files written anew: DuckDB keeps the bytes of what was deleted or replaced until it needs the room.

Reads and replaces DuckDB files; a copy that a killed process left is removed by the next one.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import duckdb

from clusterucb_core.errors import StaleArtifact
from clusterucb_core.store.connection import wait_for_catalog
from clusterucb_core.store.statements import rows, run, transaction

Result = TypeVar("Result")
DRAFT_SUFFIX = ".rewriting"
# What a faithful copy has in common with the original, each a question about one attached database.
_SAME = (
    "SELECT table_name, sql FROM duckdb_tables() WHERE database_name = ? ORDER BY ALL",
    "SELECT table_name, constraint_type, constraint_text FROM duckdb_constraints() "
    "WHERE database_name = ? ORDER BY ALL",
    "SELECT view_name, sql FROM duckdb_views() WHERE database_name = ? AND NOT internal ORDER BY ALL",
    "SELECT function_name, parameters, macro_definition FROM duckdb_functions() "
    "WHERE database_name = ? AND NOT internal ORDER BY ALL",
)


def rewrite_catalog(
    path: Path, change: Callable[[duckdb.DuckDBPyConnection], Result], *, timeout_s: float = 60.0
) -> Result:
    """Change a DuckDB file and replace it by a copy that holds what is visible, and none of its old bytes.

    Both files are locked from before the change until the copy bears the name, so that no other process can
    write to the old one in between, or to the new one before the old one is closed.

    Args:
        path: the file.
        change: called inside one transaction.
        timeout_s: how long to wait while others hold the file.

    Returns:
        What `change` returned.

    Raises:
        CatalogBusy: the file was still held after `timeout_s` seconds.
        StaleArtifact: the file cannot be opened, or the copy is not like it; the old one is kept.
    """
    path = path.resolve()  # a link would be replaced, and the file behind it stay
    draft = path.with_name(f"{path.name}{DRAFT_SUFFIX}")
    con = wait_for_catalog(path, partial(_attached, path), timeout_s=timeout_s)
    try:
        with transaction(con):
            result = change(con)
        run(con, "CHECKPOINT kept")  # else the log of the old file would be taken for that of the new one
        copy_database(con, "kept", draft)
        shutil.copymode(path, draft)
        draft.replace(path)
        # the old file first: while it is closed, the lock on the new one keeps the others out
        run(con, "USE memory")
        run(con, "DETACH kept")
    except BaseException:
        _discard(draft)  # under the lock: later it may be the draft of another process
        raise
    finally:
        con.close()
    return result


def copy_database(con: duckdb.DuckDBPyConnection, name: str, out: Path) -> None:
    """Copy an attached database to a new file, which stays attached as `copied` and complete on disk.

    Raises:
        StaleArtifact: the copy differs in a table, a constraint, a view, a macro or a number of rows.
    """
    _discard(out)
    run(con, f"ATTACH '{_quoted(out)}' AS copied")
    run(con, f"COPY FROM DATABASE {_identifier(name)} TO copied")
    run(con, "CHECKPOINT copied")
    questions = [(query, [name], ["copied"]) for query in _SAME]
    same = all(rows(con, query, old) == rows(con, query, new) for query, old, new in questions)
    if not same or _counts(con, name) != _counts(con, "copied"):
        raise StaleArtifact(
            f"the copy {out} of the catalog is not like it; the catalog is as it was, report this"
        )


def _counts(con: duckdb.DuckDBPyConnection, name: str) -> list[int]:
    tables = rows(
        con, "SELECT table_name FROM duckdb_tables() WHERE database_name = ? ORDER BY table_name", [name]
    )
    places = [f"{_identifier(name)}.{_identifier(table)}" for (table,) in tables]
    return [rows(con, f"SELECT count(*) FROM {place}")[0][0] for place in places]  # noqa: S608


def _attached(path: Path) -> duckdb.DuckDBPyConnection:
    """Return a connection without a file of its own, with the catalog attached for writing."""
    con = duckdb.connect(":memory:")
    try:
        run(con, "SET TimeZone = 'UTC'")
        run(con, f"ATTACH '{_quoted(path)}' AS kept")
        spilled = path.with_name(f"{path.name}.tmp")
        shutil.rmtree(spilled, ignore_errors=True)  # of a killed process: nobody else has the file now
        run(con, f"SET temp_directory = '{_quoted(spilled)}'")
        run(con, "USE kept")
    except BaseException:
        con.close()
        raise
    return con


def _discard(draft: Path) -> None:
    for left in (draft, draft.with_name(f"{draft.name}.wal")):
        left.unlink(missing_ok=True)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
