import tracemalloc

import numpy as np
import pytest

from clusterucb_core import influence
from clusterucb_core.influence import (
    NO_COLUMN,
    aggregate_scores,
    captured_by_turns,
    captured_influence,
    influence_scores,
    judge,
    recall_at_k,
    recall_by_turns,
    round_robin_top_k,
    select_top,
    subtask_scores,
    top_k,
    turns_of_columns,
)


def unit(seed: int, n: int, d: int = 8) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def slow_scores(features: np.ndarray, target: np.ndarray, subtask: np.ndarray) -> np.ndarray:
    scores = np.zeros((len(features), max(subtask) + 1))
    for i, phi in enumerate(features):
        for s in range(scores.shape[1]):
            products = [float(np.dot(phi, target[v])) for v in range(len(target)) if subtask[v] == s]
            scores[i, s] = sum(products) / len(products)
    return scores


def test_scores_agree_with_a_double_loop():
    features, target, subtask = unit(0, 20), unit(1, 9), np.array([2, 0, 1, 0, 2, 2, 1, 0, 0])
    expected = slow_scores(features, target, subtask)
    np.testing.assert_allclose(subtask_scores(features, target, subtask), expected, atol=1e-6)
    np.testing.assert_allclose(
        influence_scores(features, target, subtask=subtask), expected.max(axis=1), atol=1e-6
    )
    mean = influence_scores(features, target, subtask=subtask, aggregate="mean")
    np.testing.assert_allclose(mean, expected.mean(axis=1), atol=1e-6)


def test_scores_by_hand():
    features = np.array([[1.0, 0.0], [0.6, 0.8]])
    target = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # Subtask 0: the mean of the first two rows, (0.5, 0.5); subtask 1: (-1, 0).
    scores = subtask_scores(features, target, np.array([0, 0, 1]))
    np.testing.assert_allclose(scores, [[0.5, -1.0], [0.7, -0.6]], atol=1e-12)
    np.testing.assert_allclose(aggregate_scores(scores, "max"), [0.5, 0.7], atol=1e-12)
    np.testing.assert_allclose(aggregate_scores(scores, "mean"), [-0.25, 0.05], atol=1e-12)


def test_block_size_and_validation_order_change_nothing(monkeypatch: pytest.MonkeyPatch):
    features, target, subtask = unit(2, 101), unit(3, 12), np.arange(12) % 3
    whole = subtask_scores(features, target, subtask)
    order = np.random.default_rng(0).permutation(12)
    monkeypatch.setattr(influence, "_BLOCK_VALUES", 56)
    np.testing.assert_allclose(subtask_scores(features, target, subtask), whole, atol=1e-14)
    np.testing.assert_allclose(subtask_scores(features, target[order], subtask[order]), whole, atol=1e-14)


def test_an_empty_batch_of_samples_has_no_scores():
    assert subtask_scores(np.zeros((0, 4)), unit(0, 3, d=4), np.array([0, 1, 1])).shape == (0, 2)


def test_memory_does_not_grow_with_a_float16_array_that_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(influence, "_BLOCK_VALUES", 2**14)
    features = np.zeros((20_000, 64), dtype=np.float16)
    tracemalloc.start()
    subtask_scores(features, unit(5, 3, d=64), np.array([0, 0, 0]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # 10 MB would be the whole array in float64


@pytest.mark.parametrize(
    ("subtask", "message"),
    [
        ([0, 2, 2], r"subtask 1 of 0..2 has no validation rows"),
        ([0, -1, 0], r"int indices from 0, not int64 from -1"),
        ([0.0, 1.0, 1.0], r"int indices from 0, not float64"),
        ([0, 1], r"one index per 3 rows"),
    ],
)
def test_a_subtask_index_that_cannot_be_is_refused(subtask: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        subtask_scores(unit(0, 4), unit(1, 3), np.array(subtask))


def test_features_that_do_not_fit_or_are_not_finite_are_refused():
    broken = unit(0, 6)
    broken[4, 2] = np.nan
    zeros = np.zeros(3, dtype=int)
    with pytest.raises(ValueError, match=r"features of sample 4 hold NaN or infinity \(1 samples"):
        subtask_scores(broken, unit(1, 3), zeros)
    with pytest.raises(ValueError, match="features of validation row 4"):
        subtask_scores(unit(0, 2), broken, np.zeros(6, dtype=int))
    with pytest.raises(ValueError, match=r"\(6, 8\) and target features \(3, 5\)"):
        subtask_scores(unit(0, 6), unit(1, 3, d=5), zeros)
    with pytest.raises(ValueError, match="no validation rows"):
        subtask_scores(unit(0, 6), np.zeros((0, 8)), zeros[:0])


def test_an_unknown_aggregate_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="aggregate='median' is unknown; known: max, mean, round_robin, round_"
    ):
        aggregate_scores(np.zeros((2, 2)), "median")  # type: ignore[arg-type]


def test_top_k_is_best_first_with_ties_at_the_lowest_index():
    assert top_k(np.array([1.0, 3.0, 2.0, 3.0, 2.0]), 4).tolist() == [1, 3, 2, 4]
    assert top_k(np.array([1.0]), 0).tolist() == []
    with pytest.raises(ValueError, match=r"k=3 must lie in 0..2"):
        top_k(np.zeros(2), 3)
    with pytest.raises(ValueError, match="sample 1 is NaN"):
        top_k(np.array([0.0, np.nan]), 1)


def test_captured_influence_by_hand():
    # Mean 2; the true top 2 sum to 4 + 3 = 7, 3 above chance.
    values = np.array([0.0, 4.0, 1.0, 3.0, 2.0])
    assert captured_influence(values, np.array([3, 1]), 2) == pytest.approx(1.0)
    assert captured_influence(values, np.array([1, 4]), 2) == pytest.approx(2 / 3)
    assert captured_influence(values, np.array([0, 2]), 2) == pytest.approx(-1.0)
    assert captured_influence(np.full(5, 0.3), np.array([0, 2]), 2) == 1.0
    assert captured_influence(values, np.arange(5), 5) == 1.0


def test_captured_influence_of_random_selections_is_zero_on_average():
    rng = np.random.default_rng(0)
    values = rng.normal(size=500) + 100.0
    shares = [captured_influence(values, rng.choice(500, 50, replace=False), 50) for _ in range(300)]
    assert abs(float(np.mean(shares))) < 0.02


def test_recall_by_hand():
    values = np.array([0.0, 4.0, 1.0, 3.0, 2.0])
    assert recall_at_k(values, np.array([3, 1]), 2) == 1.0
    assert recall_at_k(values, np.array([1, 0]), 2) == 0.5
    assert recall_at_k(values, np.array([0, 2]), 2) == 0.0


def test_recall_takes_any_of_the_samples_that_tie_for_the_last_place():
    values = np.array([5.0, 1.0, 1.0, 1.0, 0.0])
    for tied in (1, 2, 3):
        assert recall_at_k(values, np.array([0, tied]), 2) == 1.0
    assert recall_at_k(values, np.array([2, 3]), 2) == 0.5


@pytest.mark.parametrize("measure", [captured_influence, recall_at_k])
@pytest.mark.parametrize(
    ("selected", "message"),
    [
        ([0, 1], "2 distinct of 2 selected samples; k=3"),
        ([0, 1, 1], "2 distinct of 3 selected samples; k=3"),
        ([0, 1, 9], "must lie in 0..4"),
        ([0, 1, -1], "must lie in 0..4"),
    ],
)
def test_a_selection_that_is_not_k_samples_of_the_pool_is_refused(measure, selected: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        measure(np.arange(5.0), np.array(selected), 3)


# Best first, the columns rank the five samples 0 2 3 1 4 and 0 3 2 4 1.
BY_HAND = np.array([[9.0, 5.0], [1.0, 0.0], [8.0, 2.0], [2.0, 3.0], [0.0, 1.0]])


def slow_round_robin(scores: np.ndarray, k: int) -> list[int]:
    picked: list[int] = []
    for turn in range(k):
        column = scores[:, turn % scores.shape[1]]
        picked.append(min(set(range(len(scores))) - set(picked), key=lambda row: (-column[row], row)))
    return picked


@pytest.mark.parametrize(
    ("k", "expected"), [(0, []), (1, [0]), (2, [0, 3]), (3, [0, 3, 2]), (5, [0, 3, 2, 4, 1])]
)
def test_columns_take_turns_by_hand(k: int, expected: list[int]):
    assert round_robin_top_k(BY_HAND, k).tolist() == expected


def test_turns_agree_with_a_slow_round_robin_ties_included():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n, c = int(rng.integers(1, 30)), int(rng.integers(1, 9))
        scores = rng.integers(0, 4, size=(n, c)).astype(float)
        k = int(rng.integers(0, n + 1))
        assert round_robin_top_k(scores, k).tolist() == slow_round_robin(scores, k)


def test_where_k_is_not_divisible_the_first_columns_have_one_turn_more():
    assert turns_of_columns(8, 3).tolist() == [3, 3, 2]
    assert turns_of_columns(2, 3).tolist() == [1, 1, 0]
    columns = select_top(np.random.default_rng(0).normal(size=(40, 3)), 8, aggregate="round_robin").columns
    assert np.bincount(columns).tolist() == [3, 3, 2]


def test_a_choice_says_which_column_each_influence_is_the_score_in():
    by_turns = select_top(BY_HAND, 3, aggregate="round_robin")
    assert by_turns.rows.tolist() == [0, 3, 2]
    assert by_turns.influence.tolist() == [9.0, 3.0, 8.0]
    assert by_turns.columns.tolist() == [0, 1, 0]
    largest = select_top(BY_HAND, 3, aggregate="max")
    assert (largest.rows.tolist(), largest.influence.tolist()) == ([0, 2, 3], [9.0, 8.0, 3.0])
    assert largest.columns.tolist() == [0, 0, 1]
    mean = select_top(BY_HAND, 2, aggregate="mean")
    assert (mean.rows.tolist(), mean.influence.tolist()) == ([0, 2], [7.0, 5.0])
    assert mean.columns.tolist() == [NO_COLUMN, NO_COLUMN]


def test_an_aggregate_that_takes_turns_gives_a_sample_no_one_score():
    with pytest.raises(ValueError, match=r"aggregate='round_robin' selects by turns.*use select_top"):
        aggregate_scores(BY_HAND, "round_robin")


def test_captured_influence_by_turns_by_hand():
    # Of 3 turns column 0 has two: 9 + 8 are reachable, mean 4; column 1 has one: 5, mean 2.2.
    assert captured_by_turns(BY_HAND, np.array([0, 3, 2]), 3) == 1.0
    first, second = (9 + 2 - 8) / (17 - 8), (5 - 2.2) / (5 - 2.2)
    assert captured_by_turns(BY_HAND, np.array([0, 3, 4]), 3) == pytest.approx((first + second) / 2)
    # with one sample only column 0 has a turn
    assert captured_by_turns(BY_HAND, np.array([2]), 1) == pytest.approx((8 - 4) / (9 - 4))
    assert captured_by_turns(np.ones((4, 2)), np.array([0, 2]), 2) == 1.0


def test_the_true_round_robin_captures_and_recalls_all_whatever_the_scores():
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores = rng.normal(size=(60, int(rng.integers(1, 9)))) + rng.normal(size=(60, 1))
        k = int(rng.integers(1, 60))
        found = judge(scores, round_robin_top_k(scores, k), aggregate="round_robin")
        assert (found.captured_influence, found.recall) == (pytest.approx(1.0), 1.0)


def test_recall_by_turns_is_the_share_of_the_true_round_robin():
    assert recall_by_turns(BY_HAND, np.array([0, 3, 1]), 3) == pytest.approx(2 / 3)


def test_a_judgement_under_the_maximum_is_that_of_the_influence():
    scores, selected = np.random.default_rng(2).normal(size=(50, 4)), np.arange(10)
    found = judge(scores, selected, aggregate="max")
    assert found.recall == recall_at_k(scores.max(axis=1), selected, 10)
    assert found.captured_influence == captured_influence(scores.max(axis=1), selected, 10)
