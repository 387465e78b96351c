"""What changed from one selection version to another, in total, by source and by cluster."""

import duckdb
import polars as pl

from clusterucb_core.frozen import Frozen
from clusterucb_core.store.selections import check_version
from clusterucb_core.store.statements import frame


class ChangeCounts(Frozen):
    """How many samples joined, left or stayed, and by how many ranks those that stayed have moved on average.

    `name` is a source or a cluster; None where a sample has none. `mean_rank_move` is None where none stayed.
    """

    name: str | None
    added: int
    removed: int
    kept: int
    mean_rank_move: float | None


class SelectionDifference(Frozen):
    """What changed from version `a` to version `b`, in total and part by part."""

    a: int
    b: int
    total: ChangeCounts
    by_source: tuple[ChangeCounts, ...]
    by_cluster: tuple[ChangeCounts, ...]

    @property
    def parts(self) -> dict[str, tuple[ChangeCounts, ...]]:
        """All counts: those in total, by source and by cluster."""
        return {"all": (self.total,), "source": self.by_source, "cluster": self.by_cluster}


def selection_difference(con: duckdb.DuckDBPyConnection, a: int, b: int) -> SelectionDifference:
    """Count what changed from one version to another.

    Clusters are those of `b`, for a sample that left those of `a`: they have the same numbers where the one
    selection follows the other and was not clustered anew.

    Raises:
        UnknownVersion: the catalog does not hold one of the two.
    """
    check_version(con, a)
    check_version(con, b)
    changes = frame(
        con,
        """
        SELECT change, abs(rank_b - rank_a) AS move, source,
            coalesce(fresh.cluster, old.cluster)::VARCHAR AS cluster
        FROM selection_diff($a, $b)
        LEFT JOIN samples USING (sample_id)
        LEFT JOIN (FROM selection_samples WHERE selection_version = $a) AS old USING (sample_id)
        LEFT JOIN (FROM selection_samples WHERE selection_version = $b) AS fresh USING (sample_id)
        """,
        {"a": a, "b": b},
    )
    total = _counted(changes.with_columns(all=pl.lit("all")), "all")
    return SelectionDifference(
        a=a,
        b=b,
        total=total[0]
        if total
        else ChangeCounts(name="all", added=0, removed=0, kept=0, mean_rank_move=None),
        by_source=tuple(_counted(changes, "source")),
        by_cluster=tuple(_counted(changes, "cluster")),
    )


def _counted(changes: pl.DataFrame, column: str) -> list[ChangeCounts]:
    """Return the counts of each value of a column, those with the most changes first."""
    counts = changes.group_by(column).agg(
        *((pl.col("change") == name).sum().alias(name) for name in ("added", "removed", "kept")),
        pl.col("move").mean().alias("mean_rank_move"),
    )
    moved = pl.col("added") + pl.col("removed")
    rows = counts.sort(moved, pl.col(column), descending=[True, False]).iter_rows(named=True)
    return [ChangeCounts(**{"name" if key == column else key: row[key] for key in row}) for row in rows]
