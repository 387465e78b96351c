from dataclasses import replace

import pytest

from clusterucb_core.errors import UnknownVersion
from clusterucb_core.store import (
    ComparisonRow,
    publish_selections,
    record_comparisons,
    selection_comparisons,
)
from clusterucb_core.store.statements import rows

ROW = ComparisonRow(1, "run-1", "gsm8k", "random", "gsm8k", "loss", -0.5, -0.75, -0.25, False, 100, 3)


@pytest.fixture(autouse=True)
def _selections(con, add_pool, draft):
    add_pool(con, ["a1", "a2"])
    publish_selections(con, [draft(), draft(run_id="run-2")])


def test_a_comparison_is_read_with_its_version(con):
    other = replace(ROW, selection_version=2, run_id="run-2", difference=1.0)
    record_comparisons(con, [ROW, other, replace(ROW, baseline="full", low=None, high=None)])
    assert selection_comparisons(con, 1)["baseline"].to_list() == ["full", "random"]
    assert selection_comparisons(con, 1).row(1, named=True) == vars(ROW)
    assert selection_comparisons(con, 2)["difference"].to_list() == [1.0]


def test_a_comparison_is_recorded_once_and_the_first_stays(con):
    record_comparisons(con, [ROW, ROW])
    record_comparisons(con, [replace(ROW, difference=9.0), replace(ROW, run_id="run-3")])
    assert rows(con, "SELECT run_id, difference FROM comparisons ORDER BY 1") == [
        ("run-1", -0.5),
        ("run-3", -0.5),
    ]


def test_an_unknown_version_is_refused_and_nothing_written(con):
    record_comparisons(con, [])
    with pytest.raises(UnknownVersion, match="no selection version 5"):
        record_comparisons(con, [ROW, replace(ROW, selection_version=5)])
    assert rows(con, "SELECT count(*) FROM comparisons") == [(0,)]
    with pytest.raises(UnknownVersion, match="no selection version 5"):
        selection_comparisons(con, 5)
