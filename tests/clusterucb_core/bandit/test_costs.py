import itertools

import numpy as np
import pytest

from clusterucb_core.bandit.costs import (
    CostLimit,
    Seen,
    best_affordable,
    best_within,
    expected_improvements,
)
from clusterucb_core.bandit.policies import LinUcb
from clusterucb_core.bandit.pulls import pull_arms

NOTHING = Seen(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))


def test_the_expected_improvement_is_the_mean_of_what_is_above_the_threshold():
    rng = np.random.default_rng(0)
    expected = np.array([-1.0, 0.2, 3.0])
    rewards = expected + 0.7 * rng.standard_normal((400_000, 3))
    direct = np.maximum(rewards - 0.5, 0.0).mean(axis=0)
    np.testing.assert_allclose(expected_improvements(expected, 0.5, std=0.7), direct, atol=5e-3)
    np.testing.assert_array_equal(expected_improvements(expected, 0.5, std=0.0), [0.0, 0.0, 2.5])


@pytest.mark.parametrize("seed", range(20))
def test_choices_are_affordable_and_nearly_the_best_of_all_subsets(seed):
    rng = np.random.default_rng(seed)
    values, costs = rng.exponential(size=12), rng.integers(1, 9, size=12).astype(float)
    cheapest = np.sort(costs)[:4].sum()
    allowance = cheapest + rng.uniform(0.0, 12.0)
    chosen = best_affordable(values, costs, count=4, allowance=allowance)
    assert len(set(chosen.tolist())) == 4
    assert costs[chosen].sum() <= allowance
    subsets = [list(subset) for subset in itertools.combinations(range(12), 4)]
    best = max(values[s].sum() for s in subsets if costs[s].sum() <= allowance)
    # the relaxation loses less than one sample
    assert values[chosen].sum() >= best - values.max()


def test_without_a_shortage_the_most_valuable_are_chosen_best_first():
    values, costs = np.array([1.0, 5.0, 3.0, 5.0]), np.ones(4)
    assert best_affordable(values, costs, count=3, allowance=9.0).tolist() == [1, 3, 2]
    assert best_affordable(values, costs, count=0, allowance=0.0).tolist() == []


def test_where_nothing_is_affordable_the_cheapest_are_chosen():
    values, costs = np.array([1.0, 5.0, 3.0, 4.0]), np.array([1.0, 8.0, 2.0, 9.0])
    assert sorted(best_affordable(values, costs, count=2, allowance=0.5).tolist()) == [0, 2]


def test_a_round_leaves_room_for_what_chance_will_draw():
    # four draws may cost 4 x 2.5 in all; one of them is left to chance at 2.5
    costs = np.array([4.0, 4.0, 1.0, 1.0, 1.0, 4.0])
    expected = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    limit = CostLimit(costs, 1.0, k=2, draws=4)
    found = best_within(limit, np.arange(6), expected, NOTHING, count=4, at_random=1)
    assert len(found) == 3
    assert costs[found].sum() <= 4 * 2.5 - 2.5


def draws(limit, seed=0):
    rng = np.random.default_rng(3)
    context = rng.standard_normal((800, 6))
    costs = np.exp(rng.standard_normal(800))
    # what is worth the most costs the most
    rewards = context @ rng.standard_normal(6) + np.log(costs)
    context = np.column_stack([context, np.log(costs)])
    log = pull_arms(
        [np.arange(400), np.arange(400, 800)],
        lambda rows: rewards[rows],
        policy=LinUcb(explore_fraction=0.1),
        budget_samples=160,
        round_samples=20,
        context=context,
        prior=rewards + rng.standard_normal(800),
        rng=np.random.default_rng(seed),
        costs=None if limit is None else CostLimit(costs, limit, k=40, draws=160),
    )
    return log, costs, rewards


def test_a_limit_is_kept_with_the_budget_met_and_better_samples_than_chance():
    free, costs, rewards = draws(None)
    kept, _, _ = draws(1.1)
    assert len(set(kept.samples.tolist())) == 160
    assert costs[free.samples].mean() > 1.5 * costs.mean()
    # the last round's chance draws may cost more than the mean
    assert costs[kept.samples].mean() <= 1.15 * costs.mean()
    assert rewards[kept.samples].mean() > rewards.mean() + 0.3 * rewards.std()


def test_a_limit_that_does_not_bind_changes_no_draw():
    free, _, _ = draws(None)
    wide, _, _ = draws(100.0)
    np.testing.assert_array_equal(np.sort(free.samples[free.rounds == 1]), np.sort(wide.samples[:20]))
    np.testing.assert_array_equal(free.samples, wide.samples)


@pytest.mark.parametrize(("limit", "k", "cost"), [(0.0, 1, 1.0), (1.0, 0, 1.0), (1.0, 1, 0.0)])
def test_a_limit_that_means_nothing_is_refused(limit, k, cost):
    with pytest.raises(ValueError, match="a cost limit with"):
        CostLimit(np.array([cost]), limit, k, draws=1)


def test_what_was_known_before_costs_nothing_and_fills_the_selection():
    # the eight known samples cost 90 each: charged, they would leave nothing for the four draws
    costs = np.array([90.0] * 8 + [1.0, 1.0, 9.0, 9.0, 1.0, 1.0])
    expected = np.arange(14.0)
    seen = Seen(np.arange(8), np.linspace(8.0, 9.0, 8), np.array([0.5, -0.5]), known=8)
    limit = CostLimit(costs, 0.1, k=4, draws=4)
    mean = costs.mean()
    found = best_within(limit, np.arange(8, 14), expected, seen, count=4)
    assert costs[found].sum() <= 0.1 * 4 * mean
    assert found.tolist() == [13, 12, 11, 10]
    # free first draws are for an empty selection only
    tight = best_within(CostLimit(costs, 0.02, k=4, draws=4), np.arange(8, 14), expected, seen, count=4)
    assert sorted(tight.tolist()) == [8, 9, 12, 13]


def test_linucb_sees_known_rewards_before_its_first_round():
    rng = np.random.default_rng(5)
    context = rng.normal(size=(300, 6))
    rewards = context @ rng.normal(size=6)
    arms = [np.arange(150), np.arange(150, 300)]
    log = pull_arms(
        arms, lambda i: rewards[i], policy=LinUcb(explore_fraction=0.0), budget_samples=20, round_samples=10,
        context=context, rng=np.random.default_rng(0), known=[40, 0],
    )  # fmt: skip
    left = np.setdiff1d(np.arange(300), np.arange(40))
    best = left[np.argsort(-rewards[left])[:10]]
    # the regression of 40 exact rewards on 6 columns knows the rest
    assert set(log.samples[40:50].tolist()) == set(best.tolist())
    assert np.isfinite(log.bounds[40:]).all()
