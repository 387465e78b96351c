"""An audit draws what the policy left, once each, by chance or first where most is expected."""

import numpy as np
import pytest

from clusterucb_core.bandit.audits import audit_pulls
from clusterucb_core.bandit.policies import LinUcb, UcbBeta
from clusterucb_core.bandit.pulls import pull_arms
from clusterucb_core.errors import BudgetError

N, F = 300, 12


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    context = rng.normal(size=(N, F)).astype(np.float32)
    scores = context @ rng.normal(size=(F, 2)) + 0.5 * rng.normal(size=(N, 2))
    arms = [np.arange(N)[start::5] for start in range(5)]
    return context, scores, arms


def audited(world, policy, *, budget=60, audit_samples=24, seed=1, **changes):
    context, scores, arms = world
    asked: list[int] = []

    def reward(rows):
        asked.extend(rows.tolist())
        return scores[rows]

    shared = {"policy": policy, "context": context, "round_samples": 5} | changes
    log = pull_arms(arms, reward, budget_samples=budget, rng=np.random.default_rng(seed), **shared)
    audit = audit_pulls(
        arms, reward, log=log, audit_samples=audit_samples, rng=np.random.default_rng(seed), **shared
    )
    return log, audit, asked


@pytest.mark.parametrize("policy", [LinUcb(), UcbBeta()])
def test_it_follows_the_pulls_and_draws_no_sample_twice(world, policy):
    log, audit, _ = audited(world, policy)
    merged = audit.log
    np.testing.assert_array_equal(merged.samples[:60], log.samples)
    assert len(merged.samples) == len(set(merged.samples.tolist())) == 84
    assert merged.kinds[60:].tolist() == ["audit"] * 24
    np.testing.assert_array_equal(merged.rewards, world[1][merged.samples].max(axis=1))
    assert (np.diff(merged.rounds) >= 0).all()
    assert merged.rounds[60] == log.rounds[-1] + 1
    for sample, arm in zip(merged.samples, merged.arms, strict=True):
        assert sample in world[2][arm]


@pytest.mark.parametrize("policy", [LinUcb(), UcbBeta()])
def test_what_is_left_in_an_arm_goes_down_draw_by_draw(world, policy):
    merged = audited(world, policy)[1].log
    for arm in range(5):
        lefts = merged.lefts[merged.arms == arm]
        np.testing.assert_array_equal(lefts, np.arange(60, 60 - len(lefts), -1))


def test_a_cluster_policy_is_audited_by_chance_alone(world):
    _, audit, asked = audited(world, UcbBeta())
    assert (audit.n_uniform, audit.n_left) == (24, N - 60)
    assert np.isnan(audit.log.bounds[60:]).all()
    assert len(asked) == 84


def test_side_information_first_takes_what_it_expects_most_of(world):
    _, audit, _ = audited(world, LinUcb())
    assert (audit.n_uniform, audit.n_left) == (8, N - 60 - 16)
    sought, chance = audit.log.samples[60:76], audit.log.samples[76:]
    assert np.isfinite(audit.log.bounds[60:76]).all()
    assert np.isnan(audit.log.bounds[76:]).all()
    rewards = world[1].max(axis=1)
    assert rewards[sought].mean() > rewards[chance].mean() + 1.0


def test_chance_reaches_every_sample_that_was_left_about_as_often(world):
    _, scores, arms = world
    counts = np.zeros(N)
    log = audited(world, UcbBeta())[0]
    drawn = log.samples
    for seed in range(400):
        rng = np.random.default_rng(seed)
        audit = audit_pulls(
            arms, lambda rows: scores[rows], log=log, policy=UcbBeta(), audit_samples=24, rng=rng
        )
        counts[audit.log.samples[60:]] += 1
    assert not counts[drawn].any()
    left = np.setdiff1d(np.arange(N), drawn)
    assert counts[left].min() > 15
    assert counts[left].max() < 70  # 40 expected


def test_the_same_seed_audits_the_same(world):
    first, second = (audited(world, LinUcb())[1].log.samples for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("audit_samples", [0, 241])
def test_an_audit_of_nothing_or_of_more_than_is_left_is_refused(world, audit_samples):
    with pytest.raises(BudgetError, match=f"audit_samples={audit_samples} must be .* the 240 samples"):
        audited(world, UcbBeta(), audit_samples=audit_samples)
