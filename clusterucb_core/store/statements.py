"""How SQL is run on a DuckDB connection: statements, rows, frames and transactions."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import polars as pl

from clusterucb_core.errors import CatalogBusy
from clusterucb_core.store.damage import damage_in

Parameters = Sequence[object] | dict[str, object]


def run(con: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters = ()) -> None:
    """Run a statement whose result is not wanted."""
    con.execute(sql, _plain(parameters))
    con.complete()  # an unfinished result would block the connection


def rows(con: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
    """Return the rows of a query as tuples."""
    return con.execute(sql, _plain(parameters)).fetchall()


def frame(con: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters = ()) -> pl.DataFrame:
    """Return the rows of a query as a polars frame; JSON columns come as text."""
    return con.sql(sql, params=_plain(parameters)).pl()


def run_on_frame(
    con: duckdb.DuckDBPyConnection, sql: str, incoming: pl.DataFrame, *, parameters: Parameters = ()
) -> None:
    """Run a statement that reads `incoming` as the view of that name.

    Call it inside a transaction: after an error the view goes with the rollback.
    """
    con.register("incoming", incoming)
    run(con, sql, parameters)
    con.unregister("incoming")


def frame_with(
    con: duckdb.DuckDBPyConnection, sql: str, incoming: pl.DataFrame, *, parameters: Parameters = ()
) -> pl.DataFrame:
    """Return the rows of a query that reads `incoming` as the view of that name."""
    con.register("incoming", incoming)
    found = frame(con, sql, parameters)
    con.unregister("incoming")
    return found


@contextmanager
def transaction(con: duckdb.DuckDBPyConnection) -> Generator[None, None, None]:
    """Commit what the block writes, or nothing of it where the block raises.

    Raises:
        CatalogBusy: another thread of this process wrote the same rows at the same time.
    """
    con.begin()
    try:
        try:
            yield
        except BaseException:
            con.abort()  # a result left open by the error would block the rollback
            con.rollback()
            raise
        con.commit()  # a commit that fails has rolled back already
    except duckdb.TransactionException as error:
        if damage_in(error) is not None:  # a commit that met a damaged block; who opened the file tells of it
            raise
        raise CatalogBusy(
            f"another thread wrote to the catalog at the same time, and nothing of this was kept ({error}); "
            "try again, and let one task at a time write"
        ) from error


def _plain(parameters: Parameters) -> list[object] | dict[str, object]:
    return parameters if isinstance(parameters, dict) else list(parameters)
