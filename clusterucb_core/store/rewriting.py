"""Catalog files written anew: DuckDB keeps the bytes of what was deleted or replaced until it needs the room.

Reads and replaces DuckDB files; a copy that a killed process left is removed by the next one.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import duckdb

from clusterucb_core.store.connection import wait_for_catalog
from clusterucb_core.store.copying import copy_database, discard, quoted
from clusterucb_core.store.damage import damage_told
from clusterucb_core.store.statements import run, transaction

Result = TypeVar("Result")
DRAFT_SUFFIX = ".rewriting"


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
        DamagedCatalog: the file is damaged; it is kept.
        StaleArtifact: the copy is not like the file, which is kept.
    """
    with damage_told(path):
        return _rewrite(path, change, timeout_s=timeout_s)


def _rewrite(
    path: Path, change: Callable[[duckdb.DuckDBPyConnection], Result], *, timeout_s: float
) -> Result:
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
        discard(draft)  # under the lock: later it may be the draft of another process
        raise
    finally:
        con.close()
    return result


def _attached(path: Path) -> duckdb.DuckDBPyConnection:
    """Return a connection without a file of its own, with the catalog attached for writing."""
    con = duckdb.connect(":memory:")
    try:
        run(con, "SET TimeZone = 'UTC'")
        run(con, f"ATTACH '{quoted(path)}' AS kept")
        spilled = path.with_name(f"{path.name}.tmp")
        shutil.rmtree(spilled, ignore_errors=True)  # of a killed process: nobody else has the file now
        run(con, f"SET temp_directory = '{quoted(spilled)}'")
        run(con, "USE kept")
    except BaseException:
        con.close()
        raise
    return con
