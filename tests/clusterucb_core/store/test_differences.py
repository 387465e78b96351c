import pytest

from clusterucb_core.errors import UnknownVersion
from clusterucb_core.store import publish_selections, selection_difference


@pytest.fixture
def versions(con, add_pool, draft):
    """Versions 1 and 2 of sources a and b: b2 joins, a3 leaves, and the other two change places."""
    add_pool(con, ["a1", "a2", "a3", "b1", "b2"])
    publish_selections(con, [draft(["a1", "a3", "b1"], run_id="first")])
    publish_selections(con, [draft(["b1", "b2", "a1"], run_id="second")])
    return con


def test_changes_are_counted_in_total_and_by_source(versions):
    found = selection_difference(versions, 1, 2)
    total = found.total
    assert (total.added, total.removed, total.kept, total.mean_rank_move) == (1, 1, 2, 2.0)
    by_source = {item.name: (item.added, item.removed, item.kept) for item in found.by_source}
    assert by_source == {"a": (0, 1, 1), "b": (1, 0, 1)}


def test_a_sample_that_left_counts_in_the_cluster_that_it_had(con, add_pool, draft):
    add_pool(con, ["a1", "a2", "b1"])
    old, new = draft(["a1", "a2"], run_id="first"), draft(["a2", "b1"], run_id="second")
    old.samples.replace_column(3, old.samples["cluster"].__class__("cluster", [7, 3]))
    new.samples.replace_column(3, new.samples["cluster"].__class__("cluster", [3, 3]))
    publish_selections(con, [old])
    publish_selections(con, [new])
    found = selection_difference(con, 1, 2)
    assert {item.name: (item.added, item.removed, item.kept) for item in found.by_cluster} == {
        "3": (1, 0, 1),
        "7": (0, 1, 0),
    }


def test_a_version_does_not_differ_from_itself(versions):
    found = selection_difference(versions, 2, 2)
    assert (found.total.added, found.total.removed, found.total.kept) == (0, 0, 3)
    assert found.total.mean_rank_move == 0.0


def test_an_unknown_version_is_refused(versions):
    with pytest.raises(UnknownVersion, match="no selection version 9"):
        selection_difference(versions, 1, 9)
