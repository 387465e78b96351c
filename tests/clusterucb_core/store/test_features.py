import numpy as np
import polars as pl
import pytest

from clusterucb_core.records import Exclusion
from clusterucb_core.store import record_clusters, record_exclusions, record_feature_rows
from clusterucb_core.store.statements import rows


def places(*values: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(list(values), schema=["sample_id", "shard", "row_in_shard"], orient="row")


def test_feature_rows_are_recorded_once(con):
    for _ in range(2):
        record_feature_rows(con, "space", places(("a", "s1", 0), ("b", "s1", 1)))
    record_feature_rows(con, "other", places(("a", "s9", 4)))
    found = rows(con, "FROM feature_rows ORDER BY feature_space, sample_id")
    assert found == [("other", "a", "s9", 4), ("space", "a", "s1", 0), ("space", "b", "s1", 1)]


def test_a_feature_computed_again_is_listed_at_its_new_place(con):
    record_feature_rows(con, "space", places(("a", "s1", 0), ("b", "s1", 1)))
    record_feature_rows(con, "space", places(("b", "s2", 7), ("c", "s2", 8)))
    found = rows(con, "SELECT sample_id, shard, row_in_shard FROM feature_rows ORDER BY sample_id")
    assert found == [("a", "s1", 0), ("b", "s2", 7), ("c", "s2", 8)]


def test_no_rows_are_no_error(con):
    record_feature_rows(con, "space", pl.DataFrame([], schema=["sample_id", "shard", "row_in_shard"]))
    record_exclusions(con, "features", "space", [])
    record_clusters(con, "k", [], np.array([], dtype=np.int64))
    assert rows(con, "SELECT count(*) FROM feature_rows") == [(0,)]


def test_clusters_are_recorded_once(con):
    for labels in (np.array([2, 0], dtype=np.int32), np.array([2, 0])):
        record_clusters(con, "k50", ["a", "b"], labels)
    assert rows(con, "FROM clusters ORDER BY sample_id") == [("k50", "a", 2), ("k50", "b", 0)]


def test_labels_must_match_the_samples(con):
    with pytest.raises(ValueError, match="2 sample ids have 1 labels"):
        record_clusters(con, "k50", ["a", "b"], np.array([1]))


def test_exclusions_are_recorded_once_per_reason(con):
    leak = Exclusion("a", "target", "leak", "13 words shared with row 'x'")
    for _ in range(2):
        record_exclusions(con, "features", "space", [leak, leak, Exclusion("a", "target", "nan", "")])
    found = rows(con, "SELECT scope, scope_id, sample_id, reason FROM exclusions ORDER BY reason")
    assert found == [("features", "space", "a", "leak"), ("features", "space", "a", "nan")]


def test_an_unknown_scope_lists_the_known(con):
    with pytest.raises(ValueError, match="'pool' is unknown; known: selection, features"):
        record_exclusions(con, "pool", "1", [])
