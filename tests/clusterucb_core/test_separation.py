"""Rows with something in common separate a pool; rows that differ from their shuffles by chance do not."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from clusterucb_core.separation import LEVEL, chance_warning, separation, shuffles_per_row

ONE = np.zeros(12, dtype=int)


def scores_of(seed, *, rows=12, shuffles=3, samples=60, common=0.0, drift=3.0):
    """All texts share a strong direction, as shuffled tokens do; the rows themselves share another one."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, 1 + shuffles, samples)) + drift * rng.normal(size=samples)
    scores[:, 0] += common * rng.normal(size=samples)
    return scores


def test_rows_that_hold_something_in_common_separate_the_pool():
    found = [separation(scores_of(seed, common=1.0), ONE, rng=np.random.default_rng(0)) for seed in range(10)]
    assert all(item.p <= LEVEL and item.agreement > 0.05 for item in found)


def test_rows_that_differ_from_their_shuffles_by_chance_reach_every_p_value_equally_often():
    p = [separation(scores_of(seed), ONE, rng=np.random.default_rng(seed)).p for seed in range(150)]
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) < 0.1


def test_agreement_of_all_texts_with_each_other_is_no_separation():
    scores = scores_of(0, drift=100.0)
    assert separation(scores, ONE, rng=np.random.default_rng(0)).p > LEVEL


def test_p_is_the_share_of_all_ways_to_take_one_text_of_each_row():
    scores, subtask = scores_of(3, rows=4, shuffles=1, samples=9, common=0.7), np.array([0, 0, 1, 1])
    unit = np.array([[spearman_ranks(text) for text in row] for row in scores])
    unit -= unit.mean(axis=1, keepdims=True)

    def agreement(ways):
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
        return sum(
            (1.0 if subtask[i] == subtask[j] else 0.5) * (unit[i, ways[i]] @ unit[j, ways[j]])
            for i, j in pairs
        )

    every = [agreement(ways) for ways in product(range(2), repeat=4)]
    exact = np.mean([value >= every[0] - 1e-9 for value in every])
    found = separation(scores, subtask, rng=np.random.default_rng(0))
    assert found.p == pytest.approx(exact, abs=0.02)  # the simulation error of 9,999 ways is 0.005
    assert (found.rows, found.shuffles) == (4, 1)


def spearman_ranks(text):
    ranks = text.argsort().argsort() - (len(text) - 1) / 2
    return ranks / np.linalg.norm(ranks)


def test_agreement_is_a_mean_rank_correlation():
    rng = np.random.default_rng(0)
    scores = np.stack([rng.normal(size=(5, 200)), np.zeros((5, 200))], axis=1)  # a shuffle that ranks nothing
    scores[:, 0] += 2.0 * rng.normal(size=200)
    found = separation(scores, np.zeros(5, dtype=int), rng=rng)
    expected = spearmanr(scores[:, 0], axis=1).statistic[np.triu_indices(5, 1)].mean()
    assert found.agreement == pytest.approx(expected, abs=1e-6)


def test_what_every_subtask_has_of_its_own_counts_too():
    rng = np.random.default_rng(1)
    subtask = np.repeat(np.arange(9), 3)
    scores = rng.normal(size=(27, 5, 200))
    scores[:, 0] += rng.normal(size=(9, 200))[subtask]
    assert separation(scores, subtask, rng=rng).p <= LEVEL


def test_the_same_seed_gives_the_same_p_and_the_order_of_shuffles_gives_the_same_agreement():
    scores = scores_of(5, common=0.2)
    first, again = (separation(scores, ONE, rng=np.random.default_rng(2)) for _ in range(2))
    turned = separation(scores[:, [0, 3, 1, 2]], ONE, rng=np.random.default_rng(2))
    assert first == again
    assert turned.agreement == pytest.approx(first.agreement)


@pytest.mark.parametrize(("rows", "expected"), [(4, 6), (5, 4), (6, 4), (32, 4), (1000, 4)])
def test_few_rows_stand_beside_more_shuffles_so_that_the_level_can_be_reached(rows, expected):
    assert shuffles_per_row(rows) == expected
    assert (1 + expected) ** -rows < LEVEL / 10


@pytest.mark.parametrize(
    ("shape", "subtasks", "message"),
    [
        ((3, 2, 9), 3, r"shape \(3, 2, 9\) must be \[rows, 1 \+ shuffles, samples\] with at least 4 rows"),
        ((4, 1, 9), 4, r"shape \(4, 1, 9\)"),
        ((4, 2, 9), 5, r"subtask has shape \(5,\); one index for 4 rows"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(shape, subtasks, message):
    with pytest.raises(ValueError, match=message):
        separation(np.zeros(shape), np.zeros(subtasks, dtype=int), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="NaN or infinity"):
        separation(np.full((4, 2, 9), np.nan), np.zeros(4, dtype=int), rng=np.random.default_rng(0))


def test_a_warning_says_what_was_seen_and_what_to_do():
    assert chance_warning(LEVEL) is None
    warning = chance_warning(0.31)
    assert warning is not None
    assert "p = 0.31" in warning
    assert "validation rows" in warning
