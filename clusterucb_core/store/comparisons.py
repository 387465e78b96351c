"""How a selection does against each baseline of its run, on the same test rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import duckdb
import polars as pl

from clusterucb_core.store.selections import check_version
from clusterucb_core.store.statements import frame, run_on_frame, transaction

_SCHEMA = {
    "selection_version": pl.Int64,
    "run_id": pl.String,
    "target": pl.String,
    "baseline": pl.String,
    "task": pl.String,
    "metric": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "higher_is_better": pl.Boolean,
    "n": pl.Int64,
    "n_seeds": pl.Int64,
}


@dataclass(frozen=True)
class ComparisonRow:
    """A metric of the selection less that of a baseline, with a 95 % interval over n test rows.

    `baseline` is `zero_shot`, `full`, `random:0`, or `random` for all random selections, whose interval is
    over `n_seeds` seeds as well. An interval without 0 tells the two apart; `higher_is_better` says, where it
    is known, whether a difference above 0 speaks for the selection.
    """

    selection_version: int
    run_id: str
    target: str
    baseline: str
    task: str
    metric: str
    difference: float
    low: float | None
    high: float | None
    higher_is_better: bool | None
    n: int
    n_seeds: int


def record_comparisons(con: duckdb.DuckDBPyConnection, rows: Sequence[ComparisonRow]) -> None:
    """Record comparisons; one that is there already stays as it is.

    They are told apart by version, run, baseline, task and metric.

    Raises:
        UnknownVersion: a row names a selection version that the catalog does not hold.
    """
    if not rows:
        return
    incoming = pl.DataFrame([asdict(row) for row in rows], schema=_SCHEMA)
    keys = ["selection_version", "run_id", "baseline", "task", "metric"]
    with transaction(con):
        for version in {row.selection_version for row in rows}:
            check_version(con, version)
        run_on_frame(
            con,
            "INSERT INTO comparisons BY NAME FROM incoming ON CONFLICT DO NOTHING",
            incoming.unique(keys, keep="first", maintain_order=True),
        )


def selection_comparisons(con: duckdb.DuckDBPyConnection, version: int) -> pl.DataFrame:
    """Return the comparisons of a version, with all columns of the table.

    Raises:
        UnknownVersion: the catalog holds no such version.
    """
    check_version(con, version)
    query = "FROM comparisons WHERE selection_version = ? ORDER BY task, metric, baseline, run_id"
    return frame(con, query, [version])
