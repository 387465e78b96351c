"""Where each computed feature lies, the cluster of each sample, and the samples that cannot be used."""

from collections.abc import Sequence
from dataclasses import asdict

import duckdb
import numpy as np
import polars as pl

from clusterucb_core.records import Exclusion, IntArray
from clusterucb_core.store.statements import run_on_frame, transaction

EXCLUSION_SCOPES = ("selection", "features")
_EXCLUSION_SCHEMA = pl.Schema([(name, pl.String) for name in ("sample_id", "stage", "reason", "detail")])


def record_feature_rows(con: duckdb.DuckDBPyConnection, feature_space: str, rows: pl.DataFrame) -> None:
    """Record in which shard, and in which row of it, the feature of each sample lies.

    A repeat writes nothing; a sample that was computed again elsewhere is listed at its new place.

    Args:
        con: a catalog opened for writing.
        feature_space: fingerprint of the feature space.
        rows: sample_id, shard, row_in_shard; ids are unique.
    """
    if rows.is_empty():
        return
    with transaction(con):
        run_on_frame(
            con,
            "INSERT INTO feature_rows SELECT $space, sample_id, shard, row_in_shard FROM incoming "
            "ANTI JOIN (FROM feature_rows WHERE feature_space = $space) AS stored "
            "USING (sample_id, shard, row_in_shard) "
            "ON CONFLICT DO UPDATE SET shard = excluded.shard, row_in_shard = excluded.row_in_shard",
            rows.select("sample_id", "shard", "row_in_shard"),
            parameters={"space": feature_space},
        )


def forget_feature_rows(con: duckdb.DuckDBPyConnection, feature_spaces: Sequence[str]) -> None:
    """Forget where the features of some spaces lay, because their shards were removed."""
    spaces = pl.DataFrame({"feature_space": list(feature_spaces)}, schema={"feature_space": pl.String})
    with transaction(con):
        run_on_frame(
            con,
            "DELETE FROM feature_rows WHERE feature_space IN (SELECT feature_space FROM incoming)",
            spaces,
        )


def record_clusters(
    con: duckdb.DuckDBPyConnection, clustering: str, sample_ids: Sequence[str], labels: IntArray
) -> None:
    """Record the cluster of each sample; a repeat writes nothing.

    Args:
        con: a catalog opened for writing.
        clustering: fingerprint of the clustering, which determines its labels.
        sample_ids: n sample ids, each once.
        labels: cluster of each, [n].

    Raises:
        ValueError: there are not as many labels as ids.
    """
    if len(sample_ids) != len(labels):
        raise ValueError(f"{len(sample_ids)} sample ids have {len(labels)} labels; give one label to each")
    incoming = pl.DataFrame(
        {"sample_id": list(sample_ids), "cluster": np.asarray(labels, dtype=np.int64)},
        schema={"sample_id": pl.String, "cluster": pl.Int64},
    )
    with transaction(con):
        run_on_frame(
            con,
            "INSERT INTO clusters SELECT $clustering, sample_id, cluster FROM incoming "
            "ANTI JOIN (FROM clusters WHERE clustering = $clustering) AS stored USING (sample_id)",
            incoming,
            parameters={"clustering": clustering},
        )


def record_exclusions(
    con: duckdb.DuckDBPyConnection, scope: str, scope_id: str, exclusions: Sequence[Exclusion]
) -> None:
    """Record the samples that a selection or a feature space cannot use; a repeat writes nothing.

    Args:
        con: a catalog opened for writing.
        scope: `selection` or `features`.
        scope_id: selection version, or fingerprint of the feature space.
        exclusions: sample, stage, reason and detail of each.

    Raises:
        ValueError: the scope is none of the two.
    """
    if scope not in EXCLUSION_SCOPES:
        raise ValueError(f"exclusion scope {scope!r} is unknown; known: {', '.join(EXCLUSION_SCOPES)}")
    with transaction(con):
        insert_exclusions(con, scope, scope_id, exclusions)


def insert_exclusions(
    con: duckdb.DuckDBPyConnection, scope: str, scope_id: str, exclusions: Sequence[Exclusion]
) -> None:
    """Write exclusions inside the transaction of the caller; those already there stay as they are."""
    if not exclusions:
        return
    run_on_frame(
        con,
        "INSERT INTO exclusions SELECT ?, ?, sample_id, stage, reason, detail FROM incoming "
        "ON CONFLICT DO NOTHING",
        pl.DataFrame([asdict(exclusion) for exclusion in exclusions], schema=_EXCLUSION_SCHEMA),
        parameters=[scope, scope_id],
    )
