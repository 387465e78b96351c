"""An early stop ends the draws when hardly any sample above the k-th best reward is expected undrawn."""

import math

import numpy as np
import pytest
from scipy import stats

from clusterucb_core.bandit.arms import add_rewards, fresh_arms
from clusterucb_core.bandit.audits import audit_pulls
from clusterucb_core.bandit.policies import LinUcb, ThresholdHard, UcbBeta
from clusterucb_core.bandit.pulls import PullLog, pull_arms
from clusterucb_core.bandit.stopping import EarlyStop, expected_in_arms, expected_in_samples

N, K = 1600, 80


def seen(rewards: list[list[float]], lefts: list[int]):
    state = fresh_arms([len(own) + left for own, left in zip(rewards, lefts, strict=True)], capacity=100)
    for arm, own in enumerate(rewards):
        add_rewards(state, np.full(len(own), arm), np.array(own))
    return state


def test_what_is_expected_in_arms_by_hand():
    # Arm 0: mean 2, s = sqrt 2, scale sqrt 3: the threshold is 1 scale up, and Cauchy's tail from 1 is 1/4.
    # Arm 1 gave 5 each time, arm 2 gave 1 each time, arms 3 and 4 too little to tell, arm 5 is closed.
    rewards = [[1.0, 3.0], [5.0, 5.0], [1.0, 1.0, 1.0], [0.0], [], [9.0, 8.0]]
    state = seen(rewards, [8, 3, 50, 4, 2, 0])
    assert expected_in_arms(state, 2.0 + math.sqrt(3.0)) == pytest.approx(8 / 4 + 3 + 0 + 4 + 2)


def test_what_is_expected_in_arms_agrees_with_the_predictive_distribution_arm_by_arm():
    rng = np.random.default_rng(0)
    rewards = [(rng.normal(size=n) + offset).tolist() for n, offset in [(2, 0), (5, -40), (40, 1), (9, 3)]]
    lefts = [7, 0, 30, 11]
    for threshold in (-50.0, 0.5, 2.0, 6.0):
        expected = sum(
            left * stats.t.sf(threshold, n - 1, np.mean(own), np.std(own, ddof=1) * math.sqrt(1 + 1 / n))
            for own, left in zip(rewards, lefts, strict=True)
            if (n := len(own))
        )
        assert expected_in_arms(seen(rewards, lefts), threshold) == pytest.approx(expected, rel=1e-9)


def test_what_is_expected_in_samples_by_hand():
    # Of three errors 1, 1 and 3 exceed what the samples lack (1.5, 0.5, -3.5); half a pseudo sample always.
    errors = np.array([2.0, -1.0, 0.0])
    found = expected_in_samples(np.array([0.0, 1.0, 5.0]), errors, 1.5)
    assert found == pytest.approx((1.5 + 1.5 + 3.5) / 3.5)


def test_without_an_error_every_sample_may_be_above():
    assert expected_in_samples(np.full(7, -1e9), np.zeros(0), 0.0) == 7.0


def test_what_is_expected_in_samples_agrees_with_a_count_over_all_pairs():
    rng = np.random.default_rng(1)
    expected, errors = rng.normal(size=50).round(1), rng.normal(size=30).round(1)
    pairs = sum(one + error > 0.85 for one in expected for error in errors)
    assert expected_in_samples(expected, errors, 0.85) == pytest.approx((pairs + 25) / 30.5)


def missed(rewards: np.ndarray, drawn: np.ndarray) -> float:
    """The share of the true top k that is not among the k best drawn."""
    return 1.0 - np.isin(np.argsort(-rewards)[:K], drawn).mean()


def side_information(seed: int, noise: float, *, skewed: bool = False):
    rng = np.random.default_rng(seed)
    context = rng.normal(size=(N, 16)).astype(np.float32)
    draw = rng.gumbel if skewed else rng.normal
    return context, context @ rng.normal(size=(16, 3)) / 4 + noise * draw(size=(N, 3))


def play(scores: np.ndarray, context: np.ndarray, *, budget: int, stop: EarlyStop | None) -> PullLog:
    rng = np.random.default_rng(0)
    return pull_arms(
        np.array_split(np.arange(N), 10),
        lambda rows: scores[rows],
        policy=LinUcb(),
        budget_samples=budget,
        round_samples=32,
        context=context,
        stop=stop,
        rng=rng,
    )


@pytest.mark.parametrize("skewed", [False, True])
def test_side_information_stops_well_before_its_budget_and_misses_little(skewed: bool):
    pulls, lost = [], []
    for seed in range(8):
        context, scores = side_information(seed, 0.15, skewed=skewed)
        log = play(scores, context, budget=1000, stop=EarlyStop(K, 0.02))
        pulls.append(len(log.samples))
        lost.append(missed(scores.max(axis=1), log.samples))
    assert np.mean(pulls) < 800
    assert np.mean(lost) < 0.02


def test_side_information_that_says_nothing_spends_its_budget():
    _, scores = side_information(0, 1.0)
    context = np.random.default_rng(1).normal(size=(N, 16))
    assert len(play(scores, context, budget=1000, stop=EarlyStop(K, 0.02)).samples) == 1000


def clusters(seed: int, spread: float):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(8), N // 8)
    rewards = spread * rng.permutation(8)[labels] + rng.normal(size=N)
    return [rng.permutation(np.flatnonzero(labels == arm)) for arm in range(8)], rewards


def pull(arms, rewards, policy, *, stop: EarlyStop | None) -> PullLog:
    rng = np.random.default_rng(0)
    return pull_arms(
        arms,
        lambda rows: rewards[rows],
        policy=policy,
        budget_samples=1000,
        round_samples=1,
        stop=stop,
        rng=rng,
    )


@pytest.mark.parametrize("policy", [UcbBeta(), ThresholdHard()], ids=lambda policy: policy.kind)
def test_clusters_without_a_hope_stop_the_draws_well_before_the_budget(policy):
    pulls, lost = [], []
    for seed in range(8):
        arms, rewards = clusters(seed, 2.5)
        log = pull(arms, rewards, policy, stop=EarlyStop(K, 0.02))
        pulls.append(len(log.samples))
        lost.append(missed(rewards, log.samples))
    assert np.mean(pulls) < 500
    assert np.mean(lost) < 0.02


def test_clusters_that_are_all_alike_spend_the_budget():
    arms, rewards = clusters(0, 0.0)
    assert len(pull(arms, rewards, UcbBeta(), stop=EarlyStop(K, 0.02)).samples) == 1000


def test_a_stopped_log_is_the_beginning_of_the_whole_one_up_to_the_end_of_a_round():
    arms, rewards = clusters(3, 2.5)
    whole = pull(arms, rewards, UcbBeta(), stop=None)
    stopped = pull(arms, rewards, UcbBeta(), stop=EarlyStop(K, 0.02))
    pulls = len(stopped.samples)
    assert K <= pulls < 1000
    assert whole.rounds[pulls] == whole.rounds[pulls - 1] + 1
    for name in PullLog.__slots__:
        np.testing.assert_array_equal(getattr(stopped, name), getattr(whole, name)[:pulls])


def test_a_tolerance_of_zero_spends_the_budget_whatever_is_left():
    arms, rewards = clusters(3, 25.0)
    assert len(pull(arms, rewards, UcbBeta(), stop=EarlyStop(K, 0.0)).samples) == 1000


def test_an_early_stop_is_audited_over_all_that_it_left():
    arms, rewards = clusters(3, 2.5)
    log = pull(arms, rewards, UcbBeta(), stop=EarlyStop(K, 0.02))
    audit = audit_pulls(
        arms,
        lambda rows: rewards[rows],
        log=log,
        policy=UcbBeta(),
        audit_samples=64,
        rng=np.random.default_rng(1),
    )
    assert (audit.n_uniform, audit.n_left) == (64, N - len(log.samples))
    assert len(set(audit.log.samples.tolist())) == len(log.samples) + 64


@pytest.mark.parametrize(("k", "tolerance"), [(0, 0.1), (5, -0.1), (5, 1.0), (5, math.nan)])
def test_an_early_stop_that_cannot_be_is_refused(k: int, tolerance: float):
    with pytest.raises(ValueError, match=f"k={k}, tolerance={tolerance}: k must be at least 1"):
        EarlyStop(k, tolerance)
