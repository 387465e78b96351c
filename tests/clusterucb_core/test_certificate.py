"""A certificate is exact where nothing is unseen, and its interval covers the truth as often as it says."""

import numpy as np
import pytest

from clusterucb_core.certificate import SeenByTurns, certify, certify_turns, taken_by_turns
from clusterucb_core.influence import (
    captured_influence,
    recall_at_k,
    recall_by_turns,
    round_robin_top_k,
    top_k,
)

N, K = 1500, 75


def drawn_by(rng, rewards, *, noise, drawn):
    """Draw the best by a noisy guess of their rewards: the kind of bias that a policy has."""
    guess = rewards + noise * rng.normal(size=len(rewards))
    return np.argsort(-guess)[:drawn]


def replay(seed, *, noise, drawn, audit_samples=60):
    rng = np.random.default_rng(seed)
    rewards = rng.standard_t(df=4, size=N) * rng.uniform(0.5, 2.0)
    known = drawn_by(rng, rewards, noise=noise, drawn=drawn)
    left = np.setdiff1d(np.arange(N), known)
    audited = rng.choice(left, size=audit_samples, replace=False)
    seen = np.concatenate([known, audited])
    chosen = seen[top_k(rewards[seen], K)]
    truth = recall_at_k(rewards, chosen, K), captured_influence(rewards, chosen, K)
    return certify(rewards[known], rewards[audited], len(left), k=K, rng=rng), truth


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "drawn"), [(0.5, 150), (1.5, 150), (1.5, 300), (50.0, 150)])
def test_the_interval_covers_the_truth_as_often_as_it_says(noise, drawn):
    found = [replay(seed, noise=noise, drawn=drawn) for seed in range(400)]
    recall = [low.recall_low <= truth[0] <= low.recall_high for low, truth in found]
    captured = [low.captured_low <= truth[1] <= low.captured_high for low, truth in found]
    assert np.mean(recall) >= 0.93
    assert np.mean(captured) >= 0.93
    assert abs(np.mean([low.recall - truth[0] for low, truth in found])) < 0.05


def turns_replay(seed, *, noise, drawn, shared):
    """Draw the best by a noisy guess of nine columns that share some part of their scores."""
    rng = np.random.default_rng(seed)
    scores = shared * rng.standard_t(df=4, size=(N, 1)) + (1 - shared) * rng.standard_t(df=4, size=(N, 9))
    known = np.argsort(-(scores + noise * rng.normal(size=scores.shape)).max(axis=1))[:drawn]
    left = np.setdiff1d(np.arange(N), known)
    seen = np.concatenate([known, rng.choice(left, size=60, replace=False)])
    picked = round_robin_top_k(scores[seen], K)
    turns = np.full(len(seen), K)
    turns[picked] = np.arange(K)
    found = certify_turns(SeenByTurns(scores[seen], turns, drawn, len(left)), k=K, rng=rng)
    return found, recall_by_turns(scores, seen[picked], K)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "drawn", "shared"), [(0.5, 150, 0.5), (1.5, 150, 0.5), (1.5, 300, 0.1), (50.0, 150, 0.9)]
)
def test_the_interval_of_a_round_robin_covers_the_truth_as_often_as_it_says(noise, drawn, shared):
    found = [turns_replay(seed, noise=noise, drawn=drawn, shared=shared) for seed in range(300)]
    assert np.mean([item.recall_low <= truth <= item.recall_high for item, truth in found]) >= 0.93
    assert abs(np.mean([item.recall - truth for item, truth in found])) < 0.15


def test_a_round_robin_is_certified_between_two_completions_without_captured_influence():
    scores = np.random.default_rng(0).normal(size=(5, 2))
    turns = np.full(5, 9)
    turns[round_robin_top_k(scores, 3)] = np.arange(3)
    found = certify_turns(SeenByTurns(scores, turns, 3, 9), k=3, rng=np.random.default_rng(0))
    order = -np.minimum(turns, 3).astype(float)
    alike = certify(order[:3], order[3:], 9, k=3, rng=np.random.default_rng(0))
    assert found.recall_low == alike.recall_low <= found.recall <= found.recall_high
    assert found.captured is None


def test_a_round_robin_that_was_all_seen_is_certain():
    scores = np.random.default_rng(1).normal(size=(40, 3))
    turns = np.full(40, 8)
    turns[round_robin_top_k(scores, 8)] = np.arange(8)
    found = certify_turns(SeenByTurns(scores, turns, 30, 10), k=8, rng=np.random.default_rng(0))
    assert (found.recall_low, found.recall, found.recall_high) == (1.0, 1.0, 1.0)


def test_copies_take_turns_as_a_slow_round_robin_over_them_does():
    rng = np.random.default_rng(2)
    scores, copies = rng.normal(size=(12, 3)), rng.integers(1, 5, size=(6, 12))
    ranked = np.argsort(-scores, axis=0).T
    for pool, taken in zip(copies, taken_by_turns(ranked, copies, 14), strict=True):
        rows = np.repeat(np.arange(12), pool)
        picked = rows[round_robin_top_k(scores[rows], 14)]
        assert taken.tolist() == np.bincount(picked, minlength=12).tolist()


def test_what_was_all_seen_is_certain():
    rewards = np.random.default_rng(0).normal(size=40)
    found = certify(rewards[:30], rewards[30:], 10, k=8, rng=np.random.default_rng(1))
    assert (found.recall_low, found.recall, found.recall_high) == (1.0, 1.0, 1.0)
    assert found.captured_low == pytest.approx(1.0)


def test_a_larger_audit_narrows_the_interval():
    widths = [
        np.mean(
            [
                found.recall_high - found.recall_low
                for found, _ in (replay(seed, noise=1.5, drawn=150, audit_samples=size) for seed in range(20))
            ]
        )
        for size in (30, 120, 480)
    ]
    assert widths[0] > widths[1] > widths[2]


def test_every_replicate_is_a_whole_pool_counted_by_hand():
    # two of ten left are audited; each completed pool holds 8 more samples at 5, at 1, or above all
    known, audited = np.array([9.0, 8.0, 0.0]), np.array([5.0, 1.0])
    found = certify(known, audited, 10, k=3, rng=np.random.default_rng(0), level=0.999)
    # at best the three selected, 9, 8 and 5, are the top three; at worst all eight lie above 9
    assert (found.recall_low, found.recall_high) == (0.0, 1.0)


def test_an_audit_that_saw_nothing_does_not_claim_that_there_is_nothing():
    known, audited = np.arange(100.0, 200.0), np.zeros(20)
    found = certify(known, audited, 1000, k=100, rng=np.random.default_rng(0))
    assert found.recall > 0.9
    assert found.recall_low < 0.7


def test_the_same_seed_certifies_the_same():
    known, audited = np.arange(50.0), np.arange(40.0)
    first, second = (certify(known, audited, 400, k=20, rng=np.random.default_rng(3)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("audited", "n_left", "k"), [(0, 10, 5), (5, 4, 5), (5, 10, 40), (5, 10, 0)])
def test_figures_that_cannot_be_are_refused(audited, n_left, k):
    with pytest.raises(ValueError, match=f"{audited} audited of {n_left} left and k={k} of {20 + audited}"):
        certify(np.arange(20.0), np.arange(float(audited)), n_left, k=k, rng=np.random.default_rng(0))
