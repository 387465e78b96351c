"""What evaluations measured, for selections and for the baselines of their run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import duckdb
import polars as pl

from clusterucb_core.store.selections import check_version, selection_summary
from clusterucb_core.store.statements import frame, run_on_frame, transaction

_SCHEMA = {
    "selection_version": pl.Int64,
    "run_id": pl.String,
    "subject": pl.String,
    "task": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "target": pl.String,
}


@dataclass(frozen=True)
class EvaluationRow:
    """One metric of one subject on one task, with a 95 % interval over n rows.

    `selection_version` is None for a baseline; `subject` is `selection`, `zero_shot`, `random:0` or `full`.
    `target` is the one that the subject was selected for or is set beside: one run may have several, and
    measure them on the same task.
    """

    selection_version: int | None
    run_id: str
    subject: str
    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    target: str | None = None


def record_evaluations(con: duckdb.DuckDBPyConnection, rows: Sequence[EvaluationRow]) -> None:
    """Record evaluations; one that is there already stays as it is.

    They are told apart by version, run, subject, task, metric and target.

    Raises:
        UnknownVersion: a row names a selection version that the catalog does not hold.
    """
    if not rows:
        return
    incoming = pl.DataFrame([asdict(row) for row in rows], schema=_SCHEMA)
    keys = ["selection_version", "run_id", "subject", "task", "metric", "target"]
    with transaction(con):
        for version in {row.selection_version for row in rows}:
            if version is not None:
                check_version(con, version)
        # A baseline's version is NULL, which no primary key admits: the join below takes its place.
        run_on_frame(
            con,
            "INSERT INTO evaluations BY NAME SELECT incoming.* FROM incoming ANTI JOIN evaluations AS stored "
            "ON incoming.selection_version IS NOT DISTINCT FROM stored.selection_version "
            "AND incoming.run_id = stored.run_id AND incoming.subject = stored.subject "
            "AND incoming.task = stored.task AND incoming.metric = stored.metric "
            "AND incoming.target IS NOT DISTINCT FROM stored.target",
            incoming.unique(keys, keep="first", maintain_order=True),
        )


def selection_evaluations(con: duckdb.DuckDBPyConnection, version: int) -> pl.DataFrame:
    """Return the evaluations of a version and of the baselines of its runs for the version's target.

    Returns:
        All columns of the table.

    Raises:
        UnknownVersion: the catalog holds no such version.
    """
    summary = selection_summary(con, version)
    return frame(
        con,
        """
        FROM evaluations
        WHERE selection_version = $version OR (
            selection_version IS NULL
            -- catalogs of schema version 2 name no target, and their runs had one
            AND coalesce(target, $target) = $target
            -- runs that differ only in what they evaluate share a version
            AND run_id IN (
                SELECT $run_id UNION SELECT run_id FROM evaluations WHERE selection_version = $version
            )
        )
        ORDER BY task, metric, selection_version NULLS LAST, subject, run_id
        """,
        {"version": version, "run_id": summary.run_id, "target": summary.target},
    )
