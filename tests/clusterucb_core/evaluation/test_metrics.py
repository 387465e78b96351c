import math

import pytest

from clusterucb_core.evaluation.metrics import report_results

REPORT = {
    "results": {
        "suite": {"alias": "suite", "acc,none": 0.5, "acc_stderr,none": 0.1},
        "first": {
            "acc,none": 0.9,
            "acc_stderr,none": 0.1,
            "perplexity,none": 9.0,
            "perplexity_stderr,none": 2.0,
        },
        "second": {
            "exact_match,strict": 0.25,
            "exact_match_stderr,strict": 0.0625,
            "exact_match,loose": 1.0,
            "exact_match_stderr,loose": "N/A",
            "bleu,none": 3.0,
            "bleu_stderr,none": "N/A",
        },
    },
    "n-samples": {"first": {"original": 9, "effective": 4}, "second": {"original": 7, "effective": 7}},
    "group_subtasks": {"suite": ["first", "second"]},
}


@pytest.fixture(scope="module")
def results():
    return {(r.task, r.metric): r for r in report_results(REPORT, "full")}


def test_shares_are_cut_to_0_and_1_and_other_metrics_are_not(results):
    share, other = results["first", "acc"], results["first", "perplexity"]
    assert (share.low, share.high) == (pytest.approx(0.704), 1.0)
    assert (other.low, other.high) == (pytest.approx(5.08), pytest.approx(12.92))


def test_without_a_standard_error_a_share_may_be_anything_and_the_rest_is_unknown(results):
    assert (results["second", "exact_match:loose"].low, results["second", "exact_match:loose"].high) == (
        0.0,
        1.0,
    )
    assert math.isnan(results["second", "bleu"].low)


def test_two_filters_of_a_metric_are_told_apart(results):
    assert {metric for task, metric in results if task == "second"} == {
        "exact_match:strict",
        "exact_match:loose",
        "bleu",
    }


def test_a_group_counts_the_rows_of_its_members(results):
    assert [results[key].n for key in (("first", "acc"), ("second", "bleu"), ("suite", "acc"))] == [4, 7, 11]
    assert results["suite", "acc"].subject == "full"
