import math

import numpy as np
import pytest
from scipy.stats import binomtest

from clusterucb_core.evaluation.metrics import report_results, row_scores, within_share

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


ROWS = ((-6.0, 3), (-2.0, 2), (-8.0, 3), (-5.0, 4))
PERPLEXITY = math.exp(21 / 12)
WITH_SAMPLES = {
    "results": {
        "text": {"alias": "text", "perplexity,none": PERPLEXITY, "perplexity_stderr,none": "N/A"},
        "sums": {"exact_match,answer": 0.75, "exact_match_stderr,answer": 0.25, "mcc,answer": 0.4},
    },
    "n-samples": {name: {"original": 4, "effective": 4} for name in ("text", "sums")},
    "group_subtasks": {},
    "higher_is_better": {"text": {"perplexity": False}, "sums": {"exact_match": True}},
    "samples": {
        "text": [{"doc_id": i, "filter": "none", "perplexity": row} for i, row in enumerate(ROWS)],
        "sums": [
            {"doc_id": i, "filter": "answer", "exact_match": hit, "mcc": (hit, 1)}
            for i, hit in enumerate((1.0, 0, True, 1.0))
        ],
    },
}


def test_rows_are_given_for_metrics_that_are_their_mean():
    scores = {(item.task, item.metric): item for item in row_scores(WITH_SAMPLES)}
    assert set(scores) == {("text", "log_perplexity"), ("sums", "exact_match")}
    hits = scores["sums", "exact_match"]
    assert (hits.rows.tolist(), hits.values.tolist()) == ([0, 1, 2, 3], [1.0, 0.0, 1.0, 1.0])
    assert (hits.higher_is_better, scores["text", "log_perplexity"].higher_is_better) == (True, False)


def test_the_rows_of_a_perplexity_have_the_mean_and_the_error_of_the_ratio():
    (values,) = [item.values for item in row_scores(WITH_SAMPLES) if item.task == "text"]
    assert values.mean() == pytest.approx(21 / 12)
    losses, weights = np.array(ROWS).T * [[-1], [1]]
    without = [np.delete(losses, i).sum() / np.delete(weights, i).sum() for i in range(4)]
    jackknife = np.sqrt(3 * np.var(without))
    assert values.std(ddof=1) / 2 == pytest.approx(jackknife, rel=0.2), (
        "unlinearised values give three times it"
    )


def test_a_perplexity_has_the_interval_of_its_logarithm():
    (result,) = [r for r in report_results(WITH_SAMPLES, "s") if r.metric == "perplexity"]
    (values,) = [item.values for item in row_scores(WITH_SAMPLES) if item.task == "text"]
    error = 1.96 * values.std(ddof=1) / 2
    assert result.value == PERPLEXITY
    assert (result.low, result.high) == pytest.approx(
        (PERPLEXITY / math.exp(error), PERPLEXITY * math.exp(error))
    )


def test_only_shares_stay_within_0_and_1():
    assert within_share("acc_norm", -0.1, 1.2) == (0.0, 1.0)
    assert within_share("loss", -0.1, 1.2) == (-0.1, 1.2)


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (3, 4), (12, 12), (40, 100)])
def test_right_and_wrong_rows_have_the_interval_of_wilson(hits, n):
    rows = [{"doc_id": i, "filter": "none", "acc": float(i < hits)} for i in range(n)]
    report = {
        "results": {"t": {"acc,none": hits / n, "acc_stderr,none": 0.0}},
        "n-samples": {"t": {"original": n, "effective": n}},
        "group_subtasks": {},
        "higher_is_better": {"t": {"acc": True}},
        "samples": {"t": rows},
    }
    (result,) = report_results(report, "s")
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert (result.low, result.high) == pytest.approx(tuple(expected), abs=1e-4)
