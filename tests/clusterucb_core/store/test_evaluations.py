from dataclasses import replace

import pytest

from clusterucb_core.errors import UnknownVersion
from clusterucb_core.store import (
    EvaluationRow,
    publish_selections,
    record_evaluations,
    selection_evaluations,
)
from clusterucb_core.store.statements import rows

OWN = EvaluationRow(1, "run-1", "selection", "gsm8k", "loss", 1.5, 1.4, 1.6, 100)
BASELINE = replace(OWN, selection_version=None, subject="random:0", value=1.8)


@pytest.fixture(autouse=True)
def _selections(con, add_pool, draft):
    add_pool(con, ["a1", "a2"])
    publish_selections(con, [draft(), draft(run_id="run-2")])


def test_evaluations_are_recorded_once(con):
    for _ in range(2):
        record_evaluations(con, [OWN, BASELINE, OWN])
    assert rows(con, "SELECT selection_version, subject FROM evaluations ORDER BY 2") == [
        (None, "random:0"),
        (1, "selection"),
    ]


def test_the_first_value_stays(con):
    record_evaluations(con, [BASELINE])
    record_evaluations(con, [replace(BASELINE, value=9.0), replace(BASELINE, metric="accuracy")])
    assert rows(con, "SELECT metric, value FROM evaluations ORDER BY 1") == [("accuracy", 1.8), ("loss", 1.8)]


def test_a_version_is_read_with_the_baselines_of_its_run(con):
    foreign = replace(BASELINE, run_id="run-2", subject="zero_shot")
    record_evaluations(con, [OWN, BASELINE, foreign, replace(OWN, selection_version=2, run_id="run-2")])
    assert selection_evaluations(con, 1)["subject"].to_list() == ["selection", "random:0"]
    assert selection_evaluations(con, 2)["subject"].to_list() == ["selection", "zero_shot"]


def test_runs_that_share_a_version_share_its_baselines(con):
    record_evaluations(con, [OWN, replace(OWN, run_id="run-3"), replace(BASELINE, run_id="run-3")])
    assert selection_evaluations(con, 1)["run_id"].to_list() == ["run-1", "run-3", "run-3"]


def test_a_version_is_read_with_the_baselines_of_its_own_target(con):
    own, other = replace(BASELINE, task="arc", target="gsm8k"), replace(BASELINE, task="arc", target="other")
    record_evaluations(con, [OWN, own, replace(other, value=2.5), replace(BASELINE, subject="zero_shot")])
    found = selection_evaluations(con, 1)
    assert rows(con, "SELECT count(*) FROM evaluations") == [(4,)]
    assert sorted(found["subject"].to_list()) == ["random:0", "selection", "zero_shot"]
    assert found.filter(subject="random:0").select("target", "value").row(0) == ("gsm8k", 1.8)


def test_an_unknown_version_is_refused_and_nothing_written(con):
    with pytest.raises(UnknownVersion, match="no selection version 5"):
        record_evaluations(con, [OWN, replace(OWN, selection_version=5)])
    assert rows(con, "SELECT count(*) FROM evaluations") == [(0,)]


def test_no_rows_and_no_interval_are_no_error(con):
    record_evaluations(con, [])
    record_evaluations(con, [replace(OWN, low=None, high=None)])
    assert selection_evaluations(con, 1).select("low", "high").row(0) == (None, None)
