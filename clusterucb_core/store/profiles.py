"""What a report shows of a selection: clusters, extreme samples, its predecessor, the time of its stages."""

from collections.abc import Sequence

import duckdb
import polars as pl

from clusterucb_core.records import StageTime
from clusterucb_core.store.selections import SelectionSummary, check_version, selection_summary
from clusterucb_core.store.statements import frame, rows, run_on_frame, transaction


def record_stages(
    con: duckdb.DuckDBPyConnection, run_id: str, flow_run_id: str, stages: Sequence[StageTime]
) -> None:
    """Record the time that one flow run of a run has taken; a repeat of the same flow run replaces it."""
    if not stages:
        return
    incoming = pl.DataFrame([item.model_dump() for item in stages]).with_row_index("place")
    with transaction(con):
        run_on_frame(
            con,
            "INSERT OR REPLACE INTO run_stages BY NAME "
            "SELECT ?::VARCHAR AS run_id, ?::VARCHAR AS flow_run_id, incoming.* FROM incoming",
            incoming,
            parameters=[run_id, flow_run_id],
        )


def run_stages(con: duckdb.DuckDBPyConnection, run_id: str) -> pl.DataFrame:
    """Return stage, calls, cached and seconds of a run, summed over its flow runs, in order."""
    return frame(
        con,
        "SELECT stage, sum(calls)::BIGINT AS calls, sum(cached)::BIGINT AS cached, sum(seconds) AS seconds "
        "FROM run_stages WHERE run_id = ? GROUP BY stage ORDER BY min(place), stage",
        [run_id],
    )


def selection_clusters(con: duckdb.DuckDBPyConnection, version: int) -> pl.DataFrame:
    """Return what the clusters of a selection held and gave, the most selected first.

    Returns:
        cluster, n_pool (null where the clustering is not in the catalog), n_drawn, mean_reward and
        best_reward of the drawn, n_selected.

    Raises:
        UnknownVersion: the catalog holds no such version.
    """
    check_version(con, version)
    return frame(
        con,
        """
        WITH
        drawn AS (
            SELECT cluster, count(*) AS n_drawn, avg(reward) AS mean_reward, max(reward) AS best_reward
            FROM pulls WHERE selection_version = $version AND cluster IS NOT NULL GROUP BY cluster
        ),
        picked AS (
            SELECT cluster, count(*) AS n_selected FROM selection_samples
            WHERE selection_version = $version AND cluster IS NOT NULL GROUP BY cluster
        ),
        held AS (
            SELECT cluster, count(*) AS n_pool FROM clusters
            WHERE clustering = $clustering GROUP BY cluster
        )
        SELECT cluster, n_pool, coalesce(n_drawn, 0) AS n_drawn, mean_reward, best_reward,
            coalesce(n_selected, 0) AS n_selected
        FROM held FULL JOIN drawn USING (cluster) FULL JOIN picked USING (cluster)
        ORDER BY n_selected DESC, n_drawn DESC, cluster
        """,
        {"version": version, "clustering": _clustering(con, version)},
    )


def lowest_pulls(con: duckdb.DuckDBPyConnection, version: int, *, most: int) -> pl.DataFrame:
    """Return the drawn samples with the lowest rewards: sample_id, reward, cluster, source, messages (JSON).

    Raises:
        UnknownVersion: the catalog holds no such version.
    """
    check_version(con, version)
    return frame(
        con,
        """
        SELECT sample_id, reward, cluster, source, messages FROM (
            FROM pulls WHERE selection_version = $version AND reward IS NOT NULL
            ORDER BY reward, sample_id LIMIT $most
        ) JOIN samples USING (sample_id) ORDER BY reward, sample_id
        """,
        {"version": version, "most": most},
    )


def cluster_examples(con: duckdb.DuckDBPyConnection, version: int, *, most: int) -> pl.DataFrame:
    """Return the best selected samples of each cluster: its number, rank, id, influence, source, messages.

    Raises:
        UnknownVersion: the catalog holds no such version.
    """
    check_version(con, version)
    return frame(
        con,
        """
        SELECT cluster, rank, sample_id, influence, source, messages FROM (
            FROM selection_samples WHERE selection_version = $version AND cluster IS NOT NULL
            QUALIFY row_number() OVER (PARTITION BY cluster ORDER BY rank) <= $most
        ) LEFT JOIN samples USING (sample_id) ORDER BY cluster, rank
        """,
        {"version": version, "most": most},
    )


def previous_selection(con: duckdb.DuckDBPyConnection, version: int) -> SelectionSummary | None:
    """Return the selection of the same target that came before a version; None for the first.

    That is the last period of the newest earlier run, else the period before in the same run.

    Raises:
        UnknownVersion: the catalog holds no such version.
    """
    check_version(con, version)
    found = rows(
        con,
        """
        SELECT earlier.selection_version FROM selections AS earlier
        JOIN selections AS this USING (target)
        WHERE this.selection_version = $version AND earlier.selection_version < $version
            AND (earlier.run_id = this.run_id OR earlier.run_complete)
        ORDER BY earlier.run_id = this.run_id, earlier.selection_version DESC LIMIT 1
        """,
        {"version": version},
    )
    return selection_summary(con, found[0][0]) if found else None


def _clustering(con: duckdb.DuckDBPyConnection, version: int) -> str | None:
    """Return the clustering that a version drew or chose from: the one that agrees with all its samples."""
    found = rows(
        con,
        """
        WITH seen AS (
            SELECT sample_id, cluster FROM selection_samples WHERE selection_version = $version
            UNION SELECT sample_id, cluster FROM pulls WHERE selection_version = $version
        )
        SELECT clustering FROM clusters JOIN seen USING (sample_id)
        GROUP BY clustering
        HAVING bool_and(clusters.cluster = seen.cluster)
            AND count(*) = (SELECT count(*) FROM seen WHERE cluster IS NOT NULL)
        ORDER BY clustering LIMIT 1
        """,
        {"version": version},
    )
    return found[0][0] if found else None
