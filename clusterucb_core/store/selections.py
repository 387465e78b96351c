"""Reading published selections: their summaries, samples, pulls, sources and differences."""

import json
from datetime import datetime
from typing import Any

import duckdb
import polars as pl

from clusterucb_core.errors import UnknownVersion
from clusterucb_core.frozen import Frozen
from clusterucb_core.store.statements import frame, rows

# A message about an unknown version lists so many of the newest.
MOST_LISTED = 12


class SelectionSummary(Frozen):
    """A row of the table `selections`; the recall and captured columns are None where nothing was audited.

    `unspent_samples` is what an early stop left of the budget; `separation_p` the p-value of the separation
    check, None where it was not made.
    """

    selection_version: int
    selection_key: str
    run_id: str
    run_complete: bool
    period: int
    created_at: datetime
    pool_version: int
    target: str
    mode: str
    policy: str
    n_selected: int
    budget_samples: int
    gradient_evaluations: int
    gradient_evaluations_reused: int
    target_gradient_evaluations: int
    selection_flops: float | None
    full_selection_flops: float | None
    cost: dict[str, Any]
    estimated_recall: float | None
    recall_low: float | None
    recall_high: float | None
    unspent_samples: int
    estimated_captured: float | None
    captured_low: float | None
    captured_high: float | None
    separation_p: float | None
    config: dict[str, Any]
    config_digest: str
    code_version: str
    mlflow_run_id: str | None
    flow_run_id: str | None


def list_selections(con: duckdb.DuckDBPyConnection) -> list[SelectionSummary]:
    """Return the summaries of all versions, the oldest first."""
    return _summaries(frame(con, "FROM selections ORDER BY selection_version"))


def selection_summary(con: duckdb.DuckDBPyConnection, version: int | None) -> SelectionSummary:
    """Return the summary of a version; None means the last period of the newest complete run.

    Of a run for several targets that is the first one's.

    Raises:
        UnknownVersion: the catalog holds no such version.
    """
    if version is None:
        return latest_selections(con)[0]
    found = frame(con, "FROM selections WHERE selection_version = ?", [version])
    if found.is_empty():
        raise UnknownVersion(_unknown_message(con, version))
    return _summaries(found)[0]


def latest_selections(con: duckdb.DuckDBPyConnection) -> list[SelectionSummary]:
    """Return the last period of the newest complete run for each of its targets, in their order.

    Raises:
        UnknownVersion: the catalog holds no selection.
    """
    found = frame(
        con,
        """
        FROM latest_selection
        WHERE run_id = (SELECT run_id FROM latest_selection ORDER BY selection_version DESC LIMIT 1)
        ORDER BY selection_version
        """,
    )
    if found.is_empty():
        raise UnknownVersion(_unknown_message(con, None))
    return _summaries(found)


def latest_selection(con: duckdb.DuckDBPyConnection, target: str) -> SelectionSummary:
    """Return the last period of the newest complete run that selected for a target.

    Raises:
        UnknownVersion: no run selected for it; the message lists the targets that there are.
    """
    found = frame(con, "FROM latest_selection WHERE target = ?", [target])
    if found.is_empty():
        known = [name for (name,) in rows(con, "SELECT DISTINCT target FROM selections ORDER BY target")]
        raise UnknownVersion(
            f"the catalog holds no selection for target {target!r}; known targets: "
            f"{', '.join(known) or 'none'}"
        )
    return _summaries(found)[0]


def check_version(con: duckdb.DuckDBPyConnection, version: int) -> None:
    """Refuse a selection version that does not exist.

    Raises:
        UnknownVersion: the catalog holds no such version; the message lists those it holds.
    """
    if not rows(con, "SELECT 1 FROM selections WHERE selection_version = ?", [version]):
        raise UnknownVersion(_unknown_message(con, version))


def selection_samples(
    con: duckdb.DuckDBPyConnection, version: int, *, most: int | None = None
) -> pl.DataFrame:
    """Return rank, sample_id, influence, cluster, source and messages (JSON text), by rank.

    Messages are null where the sample was erased. Of a large selection `most` reads the first ranks only.

    Raises:
        UnknownVersion: the catalog holds no such version.
    """
    check_version(con, version)
    return frame(
        con,
        "SELECT rank, sample_id, influence, cluster, source, messages "
        "FROM selection_samples LEFT JOIN samples USING (sample_id) "
        "WHERE selection_version = $version AND ($most IS NULL OR rank <= $most) ORDER BY rank",
        {"version": version, "most": most},
    )


def selection_pulls(con: duckdb.DuckDBPyConnection, version: int) -> pl.DataFrame:
    """Return the pulls of a version in drawing order, with all columns of the table but the version.

    Raises:
        UnknownVersion: the catalog holds no such version.
    """
    check_version(con, version)
    query = "SELECT * EXCLUDE (selection_version) FROM pulls WHERE selection_version = ? ORDER BY step"
    return frame(con, query, [version])


def selection_sources(con: duckdb.DuckDBPyConnection, version: int) -> pl.DataFrame:
    """Return source, n_selected and n_pool of every source of the pool version, most selected first.

    Raises:
        UnknownVersion: the catalog holds no such version.
    """
    check_version(con, version)
    return frame(
        con,
        """
        SELECT source, count(picked.sample_id) AS n_selected, count(*) AS n_pool
        FROM selections
        JOIN pool_samples USING (pool_version)
        JOIN samples USING (sample_id)
        LEFT JOIN (FROM selection_samples WHERE selection_version = $version) AS picked USING (sample_id)
        WHERE selections.selection_version = $version
        GROUP BY source ORDER BY n_selected DESC, source
        """,
        {"version": version},
    )


def diff_selections(con: duckdb.DuckDBPyConnection, a: int, b: int) -> pl.DataFrame:
    """Return what changed from version `a` to version `b`.

    Returns:
        sample_id, change, rank_a and rank_b: `added` is in b only, `removed` in a only, `kept` in both. Added
        come first, then kept, then removed, each by rank.

    Raises:
        UnknownVersion: the catalog does not hold one of the two.
    """
    check_version(con, a)
    check_version(con, b)
    query = "FROM selection_diff(?, ?) ORDER BY change, coalesce(rank_b, rank_a), sample_id"
    return frame(con, query, [a, b])


def _summaries(found: pl.DataFrame) -> list[SelectionSummary]:
    return [
        SelectionSummary(**{**row, "cost": json.loads(row["cost"]), "config": json.loads(row["config"])})
        for row in found.iter_rows(named=True)
    ]


def _unknown_message(con: duckdb.DuckDBPyConnection, version: int | None) -> str:
    known = rows(con, "SELECT selection_version, target FROM selections ORDER BY selection_version")
    wanted = "no selection yet" if version is None else f"no selection version {version}"
    listed = [f"{number} ({target})" for number, target in known]
    if len(listed) > MOST_LISTED:
        listed = [listed[0], "...", *listed[-MOST_LISTED:]]
    if known:
        advice = f"known versions: {', '.join(listed)}; the newest is {known[-1][0]}"
    else:
        advice = "it is empty: run the pipeline first"
    return f"the catalog holds {wanted}; {advice}"
