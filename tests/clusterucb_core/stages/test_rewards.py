"""Columns that take turns reach the bandit on a common scale; the maximum sees the scores as they are."""

import numpy as np
import pytest

from clusterucb_core.stages.rewards import (
    FEWEST_SCORES,
    RewardView,
    common_scale,
    guesses_of,
    rewards_of,
)


def pool(seed=0, n=4000):
    """Scores of three columns, one of them high and one wide, and a prior that shrinks them."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 3))
    scores = (common + rng.normal(size=(n, 3))) * np.array([1.0, 0.1, 5.0]) + np.array([0.0, 7.0, 0.0])
    return scores, 0.3 * common * np.array([1.0, 0.2, 2.0])


def test_the_maximum_sees_the_scores_and_the_mean_one_column():
    scores, prior = pool(n=20)
    rows = np.arange(20)
    assert rewards_of(RewardView("max", None), rows, scores) is scores
    assert guesses_of(prior, "max") is prior
    np.testing.assert_allclose(rewards_of(RewardView("mean", None), rows, scores)[:, 0], scores.mean(axis=1))
    assert guesses_of(prior, "mean").shape == (20, 1)


def test_first_scores_of_samples_that_the_prior_chose_give_the_scale_of_the_whole_pool():
    scores, prior = pool()
    chosen = np.argsort(-prior[:, 0])[:400]
    found = common_scale(scores[chosen], chosen, prior)
    np.testing.assert_allclose(found.std, scores.std(axis=0), rtol=0.1)
    np.testing.assert_allclose(found.mean[1:], scores.mean(axis=0)[1:], atol=0.6)
    assert abs(found.mean[0]) < 0.4  # the chosen have a mean of 1.8: without the prior that were the pool's


def test_the_scale_is_that_of_the_first_scores_from_then_on():
    scores, prior = pool()
    view = RewardView("round_robin", prior)
    first = rewards_of(view, np.arange(64), scores[:64])
    rewards_of(view, np.arange(64, 900), scores[64:900])
    np.testing.assert_array_equal(rewards_of(view, np.arange(64), scores[:64]), first)
    assert np.abs(rewards_of(view, np.arange(4000), scores).std(axis=0) - 1.0).max() < 0.4


def test_a_few_first_scores_leave_the_scale_of_the_prior():
    scores, prior = pool()
    rows = np.arange(FEWEST_SCORES - 1)
    found = common_scale(scores[rows], rows, prior)
    np.testing.assert_allclose(found.std, prior.std(axis=0))


@pytest.mark.parametrize("aggregate", ["round_robin", "round_robin_validation"])
def test_a_column_without_spread_is_no_division_by_zero(aggregate):
    prior = np.ones((40, 2))
    assert np.isfinite(guesses_of(prior, aggregate)).all()
    assert np.isfinite(rewards_of(RewardView(aggregate, prior), np.arange(40), np.zeros((40, 2)))).all()
