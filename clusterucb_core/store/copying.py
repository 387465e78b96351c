"""Whole copies of an open catalog, compared with it before they count.

Writes DuckDB files.
"""

from contextlib import suppress
from pathlib import Path

import duckdb

from clusterucb_core.errors import StaleArtifact
from clusterucb_core.store.statements import rows, run

_DRAFT = "catalog.draft"
# What a faithful copy has in common with the original, each a question about one attached database.
_SAME = (
    "SELECT table_name, sql FROM duckdb_tables() WHERE database_name = ? ORDER BY ALL",
    "SELECT table_name, constraint_type, constraint_text FROM duckdb_constraints() "
    "WHERE database_name = ? ORDER BY ALL",
    "SELECT view_name, sql FROM duckdb_views() WHERE database_name = ? AND NOT internal ORDER BY ALL",
    "SELECT function_name, parameters, macro_definition FROM duckdb_functions() "
    "WHERE database_name = ? AND NOT internal ORDER BY ALL",
)


def save_copy(con: duckdb.DuckDBPyConnection, final: Path) -> None:
    """Copy the catalog of a connection to a new file, which appears whole or not at all.

    Raises:
        StaleArtifact: the copy is not like the catalog.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(_DRAFT)  # one process at a time gets here: the catalog is its lock
    run(con, "CHECKPOINT")
    ((name,),) = rows(con, "SELECT current_database()")
    try:
        copy_database(con, name, draft)
        run(con, "DETACH copied")
    except BaseException:
        with suppress(duckdb.Error):  # it may not have come to the attaching; the first error is the one told
            run(con, "DETACH copied")
        discard(draft)  # a disk that is full needs the room
        raise
    draft.replace(final)


def copy_database(con: duckdb.DuckDBPyConnection, name: str, out: Path) -> None:
    """Copy an attached database to a new file, which stays attached as `copied` and complete on disk.

    Raises:
        StaleArtifact: the copy differs in a table, a constraint, a view, a macro or a number of rows.
    """
    discard(out)
    run(con, f"ATTACH '{quoted(out)}' AS copied")
    run(con, f"COPY FROM DATABASE {identifier(name)} TO copied")
    run(con, "CHECKPOINT copied")
    questions = [(query, [name], ["copied"]) for query in _SAME]
    same = all(rows(con, query, old) == rows(con, query, new) for query, old, new in questions)
    if not same or _counts(con, name) != _counts(con, "copied"):
        raise StaleArtifact(
            f"the copy {out} of the catalog is not like it; the catalog is as it was, report this"
        )


def discard(draft: Path) -> None:
    """Remove a draft and its write-ahead log."""
    for left in (draft, log_beside(draft)):
        left.unlink(missing_ok=True)


def log_beside(database: Path) -> Path:
    """Return where DuckDB keeps the write-ahead log of a file."""
    return database.with_name(f"{database.name}.wal")


def quoted(path: Path) -> str:
    """Return a path for a place between single quotes in SQL."""
    return str(path).replace("'", "''")


def identifier(name: str) -> str:
    """Return a name as SQL takes it, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def _counts(con: duckdb.DuckDBPyConnection, name: str) -> list[int]:
    tables = rows(
        con, "SELECT table_name FROM duckdb_tables() WHERE database_name = ? ORDER BY table_name", [name]
    )
    places = [f"{identifier(name)}.{identifier(table)}" for (table,) in tables]
    return [rows(con, f"SELECT count(*) FROM {place}")[0][0] for place in places]  # noqa: S608
