import math
import time
from statistics import NormalDist
from typing import get_args

import numpy as np
import pytest

from clusterucb_core.bandit.policies import (
    Policy,
    ThresholdHard,
    ThresholdNormal,
    Ucb1,
    UcbBeta,
    Uniform,
)
from clusterucb_core.bandit.pulls import PullLog, RoundReport, cold_start_counts, pull_arms
from clusterucb_core.errors import BudgetError

VARIANTS = [variant() for variant in get_args(get_args(Policy)[0])]
every_policy = pytest.mark.parametrize("policy", VARIANTS, ids=lambda policy: policy.kind)


def pool(seed: int, sizes: list[int], offset: float = 0.0) -> tuple[list[np.ndarray], np.ndarray]:
    """Arms of the given sizes over shuffled sample indices, and the reward of every sample."""
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    arms = np.split(rng.permutation(n), np.cumsum(sizes)[:-1])
    rewards = rng.normal(size=n) + offset
    for arm in arms:
        rewards[arm] += rng.normal()
    return arms, rewards


def play(
    arms: list[np.ndarray], rewards: np.ndarray, policy: Policy, budget: int, **keywords: object
) -> PullLog:
    rng = np.random.default_rng(7)
    return pull_arms(arms, lambda i: rewards[i], policy=policy, budget_samples=budget, rng=rng, **keywords)


def slow_share(policy: Policy, own: list[float], everything: list[float]) -> float:
    threshold = sorted(everything, reverse=True)[int(len(everything) * policy.top_share)]
    if isinstance(policy, ThresholdHard):
        return sum(reward >= threshold for reward in own) / len(own)
    mean, std = float(np.mean(own)), float(np.std(own))
    return 1 - NormalDist(mean, std).cdf(threshold) if std > 0 else float(mean >= threshold)


def slow_choice(
    policy: Policy, own: list[list[float]], still_open: list[int], rng: np.random.Generator
) -> int:
    everything = [reward for rewards in own for reward in rewards]
    for arm in still_open:
        if not own[arm]:
            return arm
    if isinstance(policy, Uniform):
        return still_open[int(rng.integers(len(still_open)))]
    if isinstance(policy, UcbBeta):
        bounds = {arm: np.mean(own[arm]) + policy.beta * np.std(own[arm]) for arm in still_open}
    elif isinstance(policy, Ucb1):
        t = len(everything)
        bounds = {arm: np.mean(own[arm]) + math.sqrt(2 * math.log(t) / len(own[arm])) for arm in still_open}
    else:
        bounds = {arm: slow_share(policy, own[arm], everything) for arm in still_open}
        if max(bounds.values()) == 0:
            bounds = {arm: max(own[arm]) for arm in still_open}
    return max(still_open, key=lambda arm: bounds[arm])


def slow_pulls(
    arms: list[np.ndarray], rewards: np.ndarray, policy: Policy, budget: int, fraction: float
) -> list[int]:
    """The paper's loop, one draw at a time, with every bound computed anew from the whole history."""
    rng = np.random.default_rng(7)
    queues = [arm.tolist() for arm in arms]
    own: list[list[float]] = [[] for _ in arms]
    drawn: list[int] = []

    def draw(arm: int) -> None:
        drawn.append(queues[arm].pop(0))
        own[arm].append(float(rewards[drawn[-1]]))

    for arm, queue in enumerate(queues):
        first = max(1, int(len(queue) * fraction)) if queue and fraction else 0
        for _ in range(first):
            draw(arm)
    while len(drawn) < budget:
        draw(slow_choice(policy, own, [arm for arm, queue in enumerate(queues) if queue], rng))
    return drawn


@every_policy
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_one_draw_a_round_agrees_with_the_direct_loop_step_by_step(
    policy: Policy, seed: int, fraction: float
):
    arms, rewards = pool(seed, [30, 1, 0, 25, 12, 3, 40], offset=-2.0 * (seed % 2))
    for budget in (12, 60, 111):
        log = play(arms, rewards, policy, budget, cold_start_fraction=fraction)
        assert log.samples.tolist() == slow_pulls(arms, rewards, policy, budget, fraction)
        np.testing.assert_array_equal(log.rewards, rewards[log.samples])


@pytest.mark.parametrize("seed", range(100))
def test_the_papers_rule_agrees_with_the_direct_loop_on_instances_of_any_kind(seed: int):
    rng = np.random.default_rng([seed, 16])
    sizes = rng.integers(0, [2, 4, 12, 60], size=(4, 4)).ravel().tolist()
    arms, rewards = pool(seed, [*sizes, 30], offset=rng.choice([-5.0, 0.0, 3.0]))
    fraction = float(rng.choice([0.0, 0.05, 0.3]))
    least = max(1, int(cold_start_counts([len(arm) for arm in arms], fraction).sum()))
    budget = int(rng.integers(least, len(rewards), endpoint=True))
    policy = UcbBeta(beta=float(rng.choice([0.0, 1.0, 2.5])))
    log = play(arms, rewards, policy, budget, cold_start_fraction=fraction, round_samples=1)
    assert log.samples.tolist() == slow_pulls(arms, rewards, policy, budget, fraction)
    assert len(log.samples) == len(set(log.samples.tolist())) == budget


@every_policy
@pytest.mark.parametrize("round_samples", [1, 3, 8, 64, 1000])
def test_the_budget_is_spent_exactly_without_a_repeat(policy: Policy, round_samples: int):
    arms, rewards = pool(1, [50, 7, 0, 90, 1, 33])
    for budget in (15, 100, 181):
        log = play(arms, rewards, policy, budget, round_samples=round_samples)
        assert len(log.samples) == len(log.rewards) == len(log.kinds) == budget
        assert len(set(log.samples.tolist())) == budget
        assert all(sample in arms[arm] for sample, arm in zip(log.samples, log.arms, strict=True))


@every_policy
def test_exhausted_arms_stay_closed_though_every_reward_is_negative(policy: Policy):
    arms, rewards = pool(2, [3, 3, 60], offset=-50.0)
    log = play(arms, rewards, policy, 66)
    assert np.bincount(log.arms).tolist() == [3, 3, 60]
    assert (log.rewards < 0).all()


@every_policy
@pytest.mark.parametrize("round_samples", [1, 8, 9, 64])
def test_no_arm_gives_more_than_an_eighth_of_a_round(policy: Policy, round_samples: int):
    arms, rewards = pool(3, [100] * 4)
    log = play(arms, rewards, policy, 300, round_samples=round_samples)
    drawn = log.kinds == "draw"
    pairs = log.rounds[drawn] * len(arms) + log.arms[drawn]
    assert np.bincount(pairs).max() <= math.ceil(round_samples / 8)
    assert np.bincount(log.rounds[drawn]).max() <= round_samples


@every_policy
def test_every_arm_is_drawn_front_to_back(policy: Policy):
    arms, rewards = pool(4, [40, 20, 30])
    log = play(arms, rewards, policy, 70, round_samples=16)
    for number, arm in enumerate(arms):
        drawn = log.samples[log.arms == number]
        np.testing.assert_array_equal(drawn, arm[: len(drawn)])


@every_policy
def test_the_same_generator_state_gives_the_same_log(policy: Policy):
    arms, rewards = pool(5, [40, 20, 30])
    first, second = (play(arms, rewards, policy, 60, round_samples=5) for _ in range(2))
    for name in PullLog.__slots__:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_a_common_offset_of_a_million_changes_no_draw():
    arms, rewards = pool(6, [80, 50, 60])
    rewards = np.round(rewards * 2**20) / 2**30  # exact after the shift; std about 1e-3
    plain, shifted = (play(arms, rewards + offset, UcbBeta(), 120) for offset in (0.0, 2.0**20))
    np.testing.assert_array_equal(plain.samples, shifted.samples)
    np.testing.assert_allclose(plain.stds, shifted.stds, rtol=1e-5)


def test_the_log_of_a_small_run_by_hand():
    # Cold start: one sample of each arm. Means 1, 2, std 0: arm 1 gives 3 more than arm 0 could, then closes.
    arms = [np.array([4, 0]), np.array([2, 1, 3])]
    rewards = np.array([9.0, 0.0, 2.0, 5.0, 1.0])
    log = play(arms, rewards, UcbBeta(), 5, cold_start_fraction=0.2)
    assert log.samples.tolist() == [4, 2, 1, 3, 0]
    assert log.arms.tolist() == [0, 1, 1, 1, 0]
    assert log.rounds.tolist() == [0, 0, 1, 2, 3]
    assert log.kinds.tolist() == ["cold_start", "cold_start", "draw", "draw", "draw"]
    # Before the fourth pull arm 1 has seen 2 and 0: mean 1, std 1.
    np.testing.assert_array_equal(log.bounds, [np.nan, np.nan, 2.0, 2.0, 1.0])
    np.testing.assert_array_equal(log.means, [np.nan, np.nan, 2.0, 1.0, 1.0])
    np.testing.assert_array_equal(log.stds, [np.nan, np.nan, 0.0, 1.0, 0.0])
    assert log.lefts.tolist() == [2, 3, 2, 1, 1]


def test_pulls_of_one_round_share_their_bounds_and_count_down_what_is_left():
    arms, rewards = pool(8, [30, 30])
    log = play(arms, rewards, UcbBeta(), 18, cold_start_fraction=0.05, round_samples=32)
    assert log.rounds.tolist() == [0] * 2 + [1] * 8 + [2] * 8
    best = log.arms[2]
    assert log.arms[2:10].tolist() == [best] * 4 + [1 - best] * 4
    assert log.lefts[2:10].tolist() == [29, 28, 27, 26] * 2
    assert len(set(log.bounds[2:6])) == 1


def test_without_a_cold_start_every_arm_is_pulled_once_first():
    arms, rewards = pool(9, [10] * 6)
    for round_samples in (1, 4, 64):
        log = play(arms, rewards, UcbBeta(), 20, cold_start_fraction=0.0, round_samples=round_samples)
        assert log.arms[:6].tolist() == list(range(6))
        assert log.rounds[0] == 1
        assert np.isposinf(log.bounds[:6]).all()
        assert np.isnan(log.means[:6]).all()


def test_the_cold_start_closes_the_arms_that_it_empties():
    arms, rewards = pool(10, [1, 1, 50])
    log = play(arms, rewards, UcbBeta(), 40, cold_start_fraction=0.05)
    assert log.arms[:4].tolist() == [0, 1, 2, 2]
    assert (log.arms[4:] == 2).all()


def test_a_budget_equal_to_the_cold_start_is_the_cold_start():
    arms, rewards = pool(11, [40, 40])
    log = play(arms, rewards, UcbBeta(), 4, cold_start_fraction=0.05)
    assert log.kinds.tolist() == ["cold_start"] * 4


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ([0, 1, 19, 20, 59, 60, 400], 0.05, [0, 1, 1, 1, 2, 3, 20]),
        ([100, 10], 0.29, [29, 2]),
        ([5, 0, 7], 0.0, [0, 0, 0]),
        ([5, 0, 7], 1.0, [5, 0, 7]),
    ],
)
def test_cold_start_counts_by_hand(sizes: list[int], fraction: float, expected: list[int]):
    assert cold_start_counts(sizes, fraction).tolist() == expected


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_a_cold_start_fraction_outside_its_range_is_refused(fraction: float):
    with pytest.raises(ValueError, match=r"cold_start_fraction=.* must lie in \[0, 1\]"):
        cold_start_counts([3], fraction)


def test_scores_per_subtask_count_by_their_maximum():
    arms, _ = pool(12, [20, 20])
    scores = np.random.default_rng(0).normal(size=(40, 3))
    wide = play(arms, scores, UcbBeta(), 25)
    narrow = play(arms, scores.max(axis=1), UcbBeta(), 25)
    np.testing.assert_array_equal(wide.samples, narrow.samples)
    np.testing.assert_array_equal(wide.rewards, scores.max(axis=1)[wide.samples])


def test_every_round_is_reported_with_the_budget_spent_so_far():
    arms, rewards = pool(13, [30, 2])
    reports: list[RoundReport] = []
    log = play(arms, rewards, UcbBeta(), 20, round_samples=16, on_round=reports.append)
    assert [report.round for report in reports] == sorted(set(log.rounds.tolist()))
    assert [report.kind for report in reports][:2] == ["cold_start", "draw"]
    assert np.concatenate([report.samples for report in reports]).tolist() == log.samples.tolist()
    assert np.cumsum([len(report.rewards) for report in reports]).tolist() == [
        r.spent_samples for r in reports
    ]
    assert (reports[-1].spent_samples, reports[-1].budget_samples, reports[-1].open_arms) == (20, 20, 1)


def test_the_reward_is_called_once_a_round_and_may_change_what_it_is_given():
    arms, rewards = pool(14, [30, 30])
    calls: list[int] = []

    def reward(samples: np.ndarray) -> np.ndarray:
        calls.append(len(samples))
        values = rewards[samples]
        samples[:] = 0
        return values

    rng = np.random.default_rng(0)
    log = pull_arms(arms, reward, policy=UcbBeta(), budget_samples=30, round_samples=8, rng=rng)
    assert len(set(log.samples.tolist())) == 30
    assert calls == np.unique(log.rounds, return_counts=True)[1].tolist()


@pytest.mark.parametrize(
    ("sizes", "budget", "fraction", "message"),
    [
        (
            [40] * 6,
            10,
            0.05,
            r"budget_samples=10 is below the cold start of 12 samples \(6 arms x 2\); raise the",
        ),
        ([1, 40, 0], 2, 0.05, r"budget_samples=2 is below the cold start of 3 samples \(2 arms x 1 to 2\);"),
        ([40, 3], 44, 0.05, r"budget_samples=44 is above the 43 samples of 2 arms; lower the budget"),
        ([40, 3], 0, 0.0, r"budget_samples=0 must be at least 1"),
        ([], 1, 0.05, r"budget_samples=1 is above the 0 samples of 0 arms"),
    ],
)
def test_a_budget_that_cannot_be_spent_is_refused_with_both_figures(sizes, budget, fraction, message):
    arms = [np.arange(size) + 1000 * number for number, size in enumerate(sizes)]
    with pytest.raises(BudgetError, match=message):
        play(arms, np.zeros(10**4), UcbBeta(), budget, cold_start_fraction=fraction)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_finite_number_names_its_sample(value: float):
    rewards = np.zeros(30)
    rewards[17] = value
    with pytest.raises(ValueError, match=r"reward of sample 17 is .*(nan|inf).*, not a finite number"):
        play([np.arange(30)], rewards, UcbBeta(), 30)
    with pytest.raises(ValueError, match="reward of sample 17"):
        play([np.arange(30)], np.stack([np.zeros(30), rewards], axis=1), UcbBeta(), 30)


@pytest.mark.parametrize("shape", [(), (2,), (4, 0), (4, 1, 1)])
def test_rewards_of_the_wrong_shape_are_refused(shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"rewards of shape .* for 4 samples"):
        pull_arms([np.arange(80)], lambda _: np.zeros(shape), policy=UcbBeta(), budget_samples=9, rng=rng)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([[0, 1], [2, 1]], "sample 1 is in the arms more than once"),
        ([[0, 1], [2, -1]], "arm 1 holds the negative sample index -1"),
        ([[0.5, 1.0]], "arm 0 must be a one-dimensional int array"),
        ([[[0, 1]]], "arm 0 must be a one-dimensional int array"),
    ],
)
def test_arms_that_cannot_be_drawn_from_are_refused(arms: list[list[int]], message: str):
    with pytest.raises(ValueError, match=message):
        play([np.array(arm) for arm in arms], np.zeros(9), UcbBeta(), 2)


def test_a_round_of_no_samples_is_refused():
    with pytest.raises(ValueError, match="round_samples=0 must be at least 1"):
        play([np.arange(3)], np.zeros(3), UcbBeta(), 2, round_samples=0)


@every_policy
def test_a_pool_of_400_000_samples_takes_seconds(policy: Policy):
    arms, rewards = pool(15, [2000] * 200)
    start = time.perf_counter()
    log = play(arms, rewards, policy, 80_000, round_samples=64)
    assert time.perf_counter() - start < 10.0
    assert len(np.unique(log.samples)) == 80_000
    if not isinstance(policy, Uniform):
        assert log.rewards.mean() > rewards.mean() + 0.5


@pytest.mark.parametrize(
    "policy", [ThresholdHard(), ThresholdNormal(), UcbBeta()], ids=lambda policy: policy.kind
)
def test_the_arm_with_the_wider_tail_is_preferred_to_one_with_the_same_mean(policy: Policy):
    rng = np.random.default_rng(0)
    rewards = np.concatenate([rng.normal(scale=0.3, size=400), rng.normal(scale=3.0, size=400)])
    log = play([np.arange(400), np.arange(400, 800)], rewards, policy, 300)
    assert np.count_nonzero(log.arms == 1) > 250


def counts_and_fronts(arms: list[np.ndarray], drawn: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """How many samples of each arm were drawn before, and the arms with those in front."""
    seen = set(drawn.tolist())
    fronts = [[i for i in arm.tolist() if i in seen] for arm in arms]
    rests = [[i for i in arm.tolist() if i not in seen] for arm in arms]
    both = [np.array([*front, *rest], dtype=np.int64) for front, rest in zip(fronts, rests, strict=True)]
    return [len(front) for front in fronts], both


@pytest.mark.parametrize(
    "policy", [policy for policy in VARIANTS if policy.kind != "uniform"], ids=lambda policy: policy.kind
)
def test_draws_go_on_from_known_rewards_as_if_they_had_just_been_drawn(policy: Policy):
    arms, rewards = pool(3, [30, 1, 0, 25, 12, 3, 40])
    first = play(arms, rewards, policy, 50, cold_start_fraction=0.1)
    known, ordered = counts_and_fronts(arms, first.samples)
    more = play(ordered, rewards, policy, 30, cold_start_fraction=0.1, known=known)
    whole = slow_pulls(arms, rewards, policy, 80, 0.1)
    assert more.samples[50:].tolist() == whole[50:]
    assert set(more.samples[:50].tolist()) == set(first.samples.tolist())
    assert more.kinds.tolist() == ["known"] * 50 + ["draw"] * 30
    assert more.rounds.tolist() == [0] * 50 + list(range(1, 31))


def test_known_rewards_take_nothing_of_the_budget_that_reports_count():
    arms, rewards = pool(1, [20, 20])
    reports: list[RoundReport] = []
    play(arms, rewards, UcbBeta(), 10, cold_start_fraction=0.0, known=[5, 3], on_round=reports.append)
    assert [(report.kind, report.spent_samples) for report in reports[:2]] == [("known", 0), ("draw", 1)]
    assert reports[-1].spent_samples == reports[-1].budget_samples == 10


def test_an_arm_with_known_rewards_has_what_is_left_of_its_cold_start():
    arms, rewards = pool(1, [20, 20, 20])
    log = play(arms, rewards, UcbBeta(), 8, cold_start_fraction=0.2, known=[6, 1, 0])
    forced = log.arms[log.kinds == "cold_start"]
    assert np.bincount(forced, minlength=3).tolist() == [0, 3, 4]


@pytest.mark.parametrize("known", [[1], [21, 0], [-1, 0]])
def test_counts_of_known_rewards_that_fit_no_arm_are_refused(known: list[int]):
    arms, rewards = pool(1, [20, 20])
    with pytest.raises(ValueError, match="must hold a count for each of 2 arms"):
        play(arms, rewards, UcbBeta(), 5, known=known)


def test_a_budget_above_what_is_left_beside_known_rewards_is_refused():
    arms, rewards = pool(1, [20, 20])
    with pytest.raises(BudgetError, match="above the 30 samples"):
        play(arms, rewards, UcbBeta(), 31, cold_start_fraction=0.0, known=[10, 0])
