"""LinUcb draws what a straight refit of every round would draw."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from clusterucb_core.bandit.outlooks import best_open, expectations, observe, open_outlook
from clusterucb_core.bandit.policies import LinUcb
from clusterucb_core.bandit.pulls import pull_arms
from clusterucb_core.bandit.regression import fit_ridge

N, F, S = 300, 12, 3


@pytest.fixture(scope="module")
def world():
    """Side information, scores of three subtasks that depend on it, a noisy guess of them, and arms."""
    rng = np.random.default_rng(0)
    context = rng.normal(size=(N, F)).astype(np.float32) * 0.1 + 1
    scores = context @ rng.normal(size=(F, S)) + 0.02 * rng.normal(size=(N, S)) - 5
    prior = scores + 0.3 * rng.normal(size=(N, S))
    return context, scores, prior, np.array_split(rng.permutation(N), 7)


def play(world, policy, budget, *, guess=True, round_samples=20, rng=3):
    context, scores, prior, arms = world
    return pull_arms(
        arms,
        lambda rows: scores[rows],
        policy=policy,
        budget_samples=budget,
        round_samples=round_samples,
        context=context,
        prior=prior if guess else None,
        rng=np.random.default_rng(rng),
    )


def slow_order(world, budget, round_samples):
    """Refit scikit-learn's ridge on everything seen before each round, at the penalty of the running fit."""
    context, scores, prior, _ = world
    total = float(np.sqrt(np.asarray(context, dtype=float).var(axis=0).sum()))
    inputs = np.concatenate([context / total, (prior - prior.mean(axis=0)) / prior.std(axis=0)], axis=1)
    outlook = open_outlook(np.arange(N), context, prior)
    drawn = list(np.argsort(-prior.max(axis=1), kind="stable")[:round_samples])
    observe(outlook, np.array(drawn), scores[drawn])
    while len(drawn) < budget:
        penalties = fit_ridge(outlook.data).penalties
        fits = [Ridge(alpha=penalties[s]).fit(inputs[drawn], scores[drawn, s]) for s in range(S)]
        expected = np.max([fit.predict(inputs) for fit in fits], axis=0)
        expected[drawn] = -np.inf
        new = list(np.argsort(-expected, kind="stable")[: min(round_samples, budget - len(drawn))])
        observe(outlook, np.array(new), scores[new])
        drawn += new
    return drawn


def test_every_round_draws_what_a_refit_from_scratch_expects_most_of(world):
    log = play(world, LinUcb(explore_fraction=0.0), 110)
    assert log.samples.tolist() == slow_order(world, 110, 20)


def test_the_budget_is_met_exactly_and_no_sample_is_drawn_twice(world):
    for budget in (1, 19, 150, N):
        log = play(world, LinUcb(explore_fraction=0.3), budget)
        assert len(log.samples) == len(set(log.samples.tolist())) == budget


def test_rewards_are_the_largest_of_the_subtasks_and_arms_those_of_the_samples(world):
    log = play(world, LinUcb(), 90)
    np.testing.assert_array_equal(log.rewards, world[1][log.samples].max(axis=1))
    assert all(sample in world[3][arm] for sample, arm in zip(log.samples, log.arms, strict=True))
    assert (log.lefts >= 1).all()


def test_side_information_finds_the_best_samples_far_sooner_than_chance(world):
    best = set(np.argsort(-world[1].max(axis=1))[:30].tolist())
    found = best & set(play(world, LinUcb(), 75).samples.tolist())
    blind = best & set(play(world, LinUcb(explore_fraction=1.0), 75).samples.tolist())
    assert len(found) > 24
    assert len(blind) < 15


def test_without_a_guess_the_first_round_is_drawn_at_random(world):
    first = play(world, LinUcb(), 60, guess=False)
    assert np.isnan(first.bounds[:20]).all()
    assert np.isfinite(first.bounds[20:]).all()
    assert first.samples[:20].tolist() != play(world, LinUcb(), 60, guess=False, rng=4).samples[:20].tolist()


def test_the_same_seed_draws_the_same(world):
    first, second = (play(world, LinUcb(explore_fraction=0.2, width=1.0), 100) for _ in range(2))
    assert first.samples.tolist() == second.samples.tolist()


def expected_of(context, scores, prior, *, width):
    outlook = open_outlook(np.arange(N), context, prior, width=width)
    observe(outlook, np.arange(40), scores[:40])
    return expectations(outlook)


def test_a_regression_stands_until_its_rows_have_grown_by_a_thirty_second(world):
    outlook = open_outlook(np.arange(N), world[0], world[2])
    observe(outlook, np.arange(100), world[1][:100])
    first = expectations(outlook)
    observe(outlook, np.arange(100, 103), world[1][100:103])
    assert expectations(outlook) is first
    observe(outlook, np.array([103]), world[1][[103]])
    assert not np.array_equal(expectations(outlook), first)


def test_width_raises_what_is_expected_of_samples_unlike_the_seen(world):
    context, scores, prior, _ = world
    narrow, wide = (expected_of(context, scores, prior, width=width) for width in (0.0, 2.0))
    assert (wide > narrow).all()
    assert np.mean((wide - narrow)[40:]) > np.mean((wide - narrow)[:40])


def test_ties_go_to_the_lowest_index(world):
    outlook = open_outlook(np.arange(N), world[0], None)
    expected = np.zeros(N)
    expected[[7, 90]] = 1
    assert best_open(outlook, expected, 5).tolist() == [7, 90, 0, 1, 2]


@pytest.mark.parametrize(
    ("context", "prior", "message"),
    [
        (np.zeros((5, 2)), None, "a row for every sample"),
        (np.full((N, 2), np.nan), None, "NaN or infinity"),
        (np.zeros((N, 2)), np.zeros(4), "must hold 300 rows"),
    ],
)
def test_side_information_that_does_not_fit_is_refused(context, prior, message):
    with pytest.raises(ValueError, match=message):
        open_outlook(np.arange(N), context, prior)


def test_linucb_without_side_information_is_refused(world):
    with pytest.raises(ValueError, match="give context"):
        pull_arms(
            world[3], lambda r: world[1][r], policy=LinUcb(), budget_samples=5, rng=np.random.default_rng(0)
        )
