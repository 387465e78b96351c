import numpy as np
import polars as pl
import pytest

from clusterucb_core.errors import UnknownVersion
from clusterucb_core.records import StageTime
from clusterucb_core.store import (
    cluster_examples,
    lowest_pulls,
    previous_selection,
    publish_selections,
    record_clusters,
    record_stages,
    run_stages,
    selection_clusters,
)

IDS = ["a1", "a2", "b1", "b2", "c1"]
SAMPLES = pl.DataFrame(
    {"rank": [1, 2, 3], "sample_id": ["a1", "b1", "a2"], "influence": [0.9, 0.5, 0.4], "cluster": [0, 1, 0]}
)
PULLS = pl.DataFrame(
    {
        "step": [0, 1, 2, 3], "round": [0, 0, 1, 1], "cluster": [0, 1, 0, 1],
        "sample_id": ["a1", "b1", "a2", "b2"], "reward": [0.9, 0.5, 0.4, -0.2], "kind": ["draw"] * 4,
        "bound": [1.0] * 4, "arm_mean": [0.1] * 4, "arm_std": [0.0] * 4, "arm_left": [1] * 4,
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def _published(con, add_pool, draft):
    add_pool(con, IDS)
    publish_selections(con, [draft(samples=SAMPLES, pulls=PULLS)])


def test_clusters_tell_their_size_draws_rewards_and_share(con):
    record_clusters(con, "other", IDS, np.array([1, 1, 0, 0, 2]))
    record_clusters(con, "own", IDS, np.array([0, 0, 1, 1, 2]))
    rows = selection_clusters(con, 1).rows()
    assert rows == [
        (0, 2, 2, pytest.approx(0.65), 0.9, 2),
        (1, 2, 2, pytest.approx(0.15), 0.5, 1),
        (2, 1, 0, None, None, 0),
    ]


def test_a_clustering_that_the_catalog_lacks_leaves_the_sizes_unknown(con):
    assert selection_clusters(con, 1)["n_pool"].to_list() == [None, None]


def test_the_lowest_rewards_come_first(con):
    assert lowest_pulls(con, 1, most=2)["sample_id"].to_list() == ["b2", "a2"]


def test_examples_are_the_best_of_each_cluster(con):
    found = cluster_examples(con, 1, most=1)
    assert found.select("cluster", "sample_id").rows() == [(0, "a1"), (1, "b1")]


def test_the_predecessor_is_of_another_run_before_it_is_the_period_before(con, draft):
    publish_selections(con, [draft(run_id="run-2", period=period) for period in (1, 2)])
    publish_selections(con, [draft(run_id="run-3", target="bbh"), draft(run_id="run-4")])
    found = {version: previous_selection(con, version) for version in range(1, 6)}
    numbers = {version: None if item is None else item.selection_version for version, item in found.items()}
    assert numbers == {1: None, 2: 1, 3: 1, 4: None, 5: 3}


def test_within_the_only_run_the_period_before_is_the_predecessor(con, draft):
    publish_selections(con, [draft(run_id="r", target="new", period=period) for period in (1, 2)])
    assert previous_selection(con, 3).selection_version == 2


def test_times_are_summed_over_flow_runs_and_a_repeat_replaces_its_own(con):
    times = [
        StageTime(stage="b", calls=2, cached=1, seconds=1.5),
        StageTime(stage="a", calls=1, cached=0, seconds=2.0),
    ]
    for flow_run in ("first", "first", "second"):
        record_stages(con, "run-1", flow_run, times)
    record_stages(con, "run-2", "third", times)
    assert run_stages(con, "run-1").rows() == [("b", 4, 2, 3.0), ("a", 2, 0, 4.0)]
    assert run_stages(con, "none").is_empty()


def test_an_unknown_version_is_refused(con):
    for look in (selection_clusters, previous_selection):
        with pytest.raises(UnknownVersion, match="no selection version 9"):
            look(con, 9)
