import json
from datetime import UTC, datetime, timedelta

import duckdb
import pytest

from clusterucb_core.errors import UnknownVersion
from clusterucb_core.store import (
    diff_selections,
    latest_selections,
    list_selections,
    open_catalog,
    publish_selections,
    selection_pulls,
    selection_samples,
    selection_sources,
    selection_summary,
)
from clusterucb_core.store.statements import rows


@pytest.fixture(autouse=True)
def _pool(con, add_pool):
    add_pool(con, ["a1", "a2", "a3", "b1", "c1"])


def test_a_summary_tells_what_was_published(con, draft):
    publish_selections(con, [draft(mlflow_run_id="m")])
    summary = selection_summary(con, 1)
    assert (summary.selection_version, summary.n_selected, summary.mlflow_run_id) == (1, 2, "m")
    assert summary.config == {"seed": 0, "target": {"name": "gsm8k"}}
    assert summary.selection_flops == 3.5e18
    assert (summary.estimated_recall, summary.recall_low, summary.recall_high) == (None, None, None)


def test_a_summary_knows_when_it_was_written(con, draft):
    publish_selections(con, [draft()])
    created_at = selection_summary(con, 1).created_at
    assert created_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - created_at) < timedelta(minutes=5)


def test_a_summary_survives_json(con, draft):
    publish_selections(con, [draft()])
    text = selection_summary(con, 1).model_dump_json()
    assert json.loads(text)["run_complete"] is True


def test_all_versions_are_listed_the_oldest_first(con, draft):
    assert list_selections(con) == []
    publish_selections(con, [draft(period=1), draft(period=2)])
    publish_selections(con, [draft(run_id="run-2")])
    assert [(s.selection_version, s.run_id, s.period) for s in list_selections(con)] == [
        (1, "run-1", 1),
        (2, "run-1", 2),
        (3, "run-2", 1),
    ]


def test_the_latest_is_the_last_period_of_the_newest_run_per_target(con, draft):
    publish_selections(con, [draft(period=1), draft(period=2), draft(period=3)])
    publish_selections(con, [draft(run_id="run-2", target="bbh", period=1)])
    publish_selections(con, [draft(run_id="run-3", period=1), draft(run_id="run-3", period=2)])
    found = rows(con, "SELECT target, selection_version FROM latest_selection ORDER BY target")
    assert found == [("bbh", 4), ("gsm8k", 6)]
    assert selection_summary(con, None).selection_version == 6


def test_the_latest_of_a_run_for_several_targets_is_the_first_ones(con, draft):
    several = [
        draft(run_id="both", target=name, period=period) for name in ("gsm8k", "bbh") for period in (1, 2)
    ]
    publish_selections(con, [draft(target="code"), *several])
    assert [(item.selection_version, item.target) for item in latest_selections(con)] == [
        (3, "gsm8k"),
        (5, "bbh"),
    ]
    assert selection_summary(con, None).selection_version == 3


def test_the_last_period_counts_even_if_it_was_not_given_last(con, draft):
    publish_selections(con, [draft(period=2), draft(period=1)])
    assert selection_summary(con, None).selection_version == 1


def test_an_unknown_version_lists_the_known(con, draft):
    publish_selections(con, [draft(), draft(target="bbh")])
    for read in (selection_summary, selection_samples, selection_pulls, selection_sources):
        with pytest.raises(
            UnknownVersion, match=r"no selection version 7; known versions: 1 \(gsm8k\), 2 \(bbh\)"
        ):
            read(con, 7)


def test_an_empty_catalog_says_so(con):
    with pytest.raises(UnknownVersion, match="holds no selection yet; it is empty: run the pipeline first"):
        selection_summary(con, None)


def test_samples_come_by_rank_with_their_text(con, draft):
    publish_selections(con, [draft(["b1", "a2"])])
    found = selection_samples(con, 1)
    assert found.columns == ["rank", "sample_id", "influence", "cluster", "source", "messages"]
    assert found.select("rank", "sample_id", "source").rows() == [(1, "b1", "b"), (2, "a2", "a")]
    assert json.loads(found["messages"][0])[0]["content"] == "b1"


def test_of_a_large_selection_the_first_ranks_can_be_read_alone(con, draft):
    publish_selections(con, [draft(["b1", "a2", "a1"])])
    assert selection_samples(con, 1, most=2)["sample_id"].to_list() == ["b1", "a2"]
    assert selection_samples(con, 1, most=9).equals(selection_samples(con, 1))


def test_pulls_come_in_drawing_order(con, draft):
    publish_selections(con, [draft(["b1", "a2"])])
    assert selection_pulls(con, 1).select("step", "sample_id", "kind").rows() == [
        (0, "b1", "cold_start"),
        (1, "a2", "cold_start"),
    ]


def test_sources_stand_beside_those_of_the_pool(con, draft, add_pool):
    publish_selections(con, [draft(["a1", "a3", "b1"])])
    add_pool(con, ["a1", "d1"])
    assert selection_sources(con, 1).rows() == [("a", 2, 3), ("b", 1, 1), ("c", 0, 1)]


def test_a_difference_is_that_of_the_table_by_hand(con, draft):
    publish_selections(con, [draft(["a1", "a2", "b1"], period=1), draft(["b1", "c1", "a2"], period=2)])
    found = diff_selections(con, 1, 2)
    assert found.columns == ["sample_id", "change", "rank_a", "rank_b"]
    assert found.rows() == [
        ("c1", "added", None, 2),
        ("b1", "kept", 3, 1),
        ("a2", "kept", 2, 3),
        ("a1", "removed", 1, None),
    ]


def test_a_version_does_not_differ_from_itself(con, draft):
    publish_selections(con, [draft()])
    assert set(diff_selections(con, 1, 1)["change"]) == {"kept"}


def test_a_difference_needs_two_known_versions(con, draft):
    publish_selections(con, [draft()])
    for a, b in ((1, 2), (2, 1)):
        with pytest.raises(UnknownVersion, match="no selection version 2"):
            diff_selections(con, a, b)


def test_any_duckdb_client_can_read_the_catalog(tmp_path, add_pool, draft):
    path = tmp_path / "plain.duckdb"
    with open_catalog(path) as con:
        add_pool(con, ["a1", "a2", "b1"])
        publish_selections(con, [draft(["a1"], period=1), draft(["b1"], period=2)])
    with duckdb.connect(path, read_only=True) as plain:
        assert plain.sql("SELECT target, selection_version FROM latest_selection").fetchall() == [
            ("gsm8k", 2)
        ]
        found = plain.sql("SELECT sample_id, change FROM selection_diff(1, 2) ORDER BY 1").fetchall()
        assert found == [("a1", "removed"), ("b1", "added")]
        query = (
            "SELECT messages->0->>'content' FROM selection_samples JOIN samples USING (sample_id) ORDER BY 1"
        )
        assert plain.sql(query).fetchall() == [("a1",), ("b1",)]
