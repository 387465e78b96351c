import math
from typing import get_args

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from clusterucb_core.bandit.arms import ArmState, add_rewards, fresh_arms
from clusterucb_core.bandit.policies import (
    Policy,
    ThresholdHard,
    ThresholdNormal,
    Ucb1,
    UcbBeta,
    Uniform,
    arm_bounds,
    bounded_draws,
    next_draws,
)

VARIANTS = [variant() for variant in get_args(get_args(Policy)[0])]

# Eight rewards. Arm 0: mean 2, std 1. Arm 1: mean 2.5, std 0.5. Arm 2: mean 0, std 0. Arm 3: 4, then closed.
TABLE = [[1.0, 3.0], [2.0, 3.0], [0.0, 0.0, 0.0], [4.0]]


def seen(rewards: list[list[float]], lefts: list[int]) -> ArmState:
    counts = [len(group) for group in rewards]
    state = fresh_arms([n + left for n, left in zip(counts, lefts, strict=True)], capacity=100)
    add_rewards(state, np.repeat(np.arange(len(rewards)), counts), np.concatenate(rewards))
    return state


def draws(policy: Policy, state: ArmState, count: int = 1, max_per_arm: int = 1, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    return next_draws(policy, state, count=count, max_per_arm=max_per_arm, rng=rng).tolist()


def test_ucb_beta_bounds_are_mean_plus_beta_population_std():
    state = seen(TABLE, [9, 9, 9, 0])
    assert arm_bounds(UcbBeta(), state).tolist() == [3.0, 3.0, 0.0, -math.inf]
    assert arm_bounds(UcbBeta(beta=2.0), state).tolist() == [4.0, 3.5, 0.0, -math.inf]


def test_ucb1_bounds_follow_the_formula():
    # ln 8 = 2.0794415: sqrt(4.158883 / 2) = 1.442027, sqrt(4.158883 / 3) = 1.177410.
    expected = [2 + 1.442027, 2.5 + 1.442027, 1.177410, -math.inf]
    np.testing.assert_allclose(arm_bounds(Ucb1(), seen(TABLE, [9, 9, 9, 0])), expected, atol=2e-6)


def test_threshold_hard_bounds_are_shares_at_or_above_the_quantile():
    # 8 rewards, p = 0.25: t is the third largest of 4 3 3 2 1 0 0 0, that is 3.
    assert arm_bounds(ThresholdHard(), seen(TABLE, [9, 9, 9, 9])).tolist() == [0.5, 0.5, 0.0, 1.0]
    # p = 0.5: the fifth largest, 1.
    state = seen(TABLE, [9, 9, 9, 0])
    assert arm_bounds(ThresholdHard(top_share=0.5), state).tolist() == [1.0, 1.0, 0.0, -math.inf]


def test_threshold_normal_bounds_are_the_upper_tail_of_a_normal_fit():
    # t = 3: arm 0 is 1 std below it, arm 1 as well: 1 - Phi(1) = 0.1586553. Std 0: 0 below, 1 at or above t.
    bounds = arm_bounds(ThresholdNormal(), seen([*TABLE, [3.0]], [9, 9, 9, 9, 9]))
    np.testing.assert_allclose(bounds, [0.1586553, 0.1586553, 0.0, 1.0, 1.0], atol=1e-7)


def test_a_rounding_error_in_n_times_p_does_not_move_the_threshold():
    # 0.29 x 100 is 28.999999999999996 in floating point: t must be the 30th largest of 0..99, 70.
    state = seen([[float(value) for value in range(100)]], [1])
    assert arm_bounds(ThresholdHard(top_share=0.29), state).tolist() == [0.3]


def test_uniform_bounds_prefer_no_open_arm():
    assert arm_bounds(Uniform(), seen(TABLE, [9, 9, 9, 0])).tolist() == [0.0, 0.0, 0.0, -math.inf]


@pytest.mark.parametrize("policy", VARIANTS, ids=lambda policy: policy.kind)
def test_every_variant_gives_bounds_and_draws_and_survives_json(policy: Policy):
    state = seen(TABLE, [9, 9, 9, 0])
    assert arm_bounds(policy, state).shape == (4,)
    assert draws(policy, state)[0] in (0, 1, 2)
    adapter: TypeAdapter[Policy] = TypeAdapter(Policy)
    assert adapter.validate_json(adapter.dump_json(policy)) == policy


@pytest.mark.parametrize("policy", VARIANTS, ids=lambda policy: policy.kind)
def test_every_variant_serves_unseen_open_arms_once_first_and_lowest_first(policy: Policy):
    state = seen([[5.0], [], [], []], [9, 9, 0, 9])
    assert arm_bounds(policy, state)[[1, 2, 3]].tolist() == [math.inf, -math.inf, math.inf]
    assert draws(policy, state, count=4, max_per_arm=2) == [1, 3, 0, 0]


@pytest.mark.parametrize("policy", VARIANTS, ids=lambda policy: policy.kind)
def test_every_variant_works_before_the_first_reward(policy: Policy):
    state = fresh_arms([1, 0, 3], capacity=4)
    assert draws(policy, state, count=4, max_per_arm=4) == [0, 2]


@pytest.mark.parametrize("policy", VARIANTS, ids=lambda policy: policy.kind)
def test_a_closed_arm_never_wins_though_every_reward_is_negative(policy: Policy):
    state = seen([[-5.0, -6.0], [-0.1], [-7.0, -8.0]], [3, 0, 3])
    assert 1 not in draws(policy, state, count=6, max_per_arm=6)


@pytest.mark.parametrize("policy", VARIANTS, ids=lambda policy: policy.kind)
def test_no_arm_gives_more_than_its_limit_or_what_it_has_left(policy: Policy):
    drawn = draws(policy, seen(TABLE, [9, 2, 9, 0]), count=64, max_per_arm=5)
    assert np.bincount(drawn, minlength=4).tolist() == [5, 2, 5, 0]


def test_a_round_takes_the_best_arm_to_its_limit_then_the_next():
    state = seen([[1.0], [3.0], [2.0]], [9, 9, 9])
    assert draws(UcbBeta(), state, count=5, max_per_arm=2) == [1, 1, 2, 2, 0]


def test_ties_go_to_the_lowest_arm():
    assert draws(UcbBeta(), seen(TABLE, [9, 9, 9, 9])) == [3]
    assert draws(UcbBeta(), seen(TABLE, [9, 9, 9, 0])) == [0]
    assert draws(ThresholdHard(), seen(TABLE, [9, 9, 9, 0])) == [0]


@pytest.mark.parametrize("policy", [ThresholdHard(), ThresholdNormal()])
def test_the_largest_reward_decides_where_every_share_is_zero(policy: Policy):
    # All that is above the threshold lies in the closed arm 3; the open arms have no spread.
    state = seen([[1.0], [2.0], [2.0], [8.0, 9.0, 9.0, 9.0]], [5, 5, 5, 0])
    assert arm_bounds(policy, state).tolist() == [0.0, 0.0, 0.0, -math.inf]
    assert draws(policy, state, count=3) == [1, 2, 0]


@pytest.mark.parametrize("policy", VARIANTS[:-1], ids=lambda policy: policy.kind)
@pytest.mark.parametrize("seed", range(20))
def test_a_single_draw_is_the_first_of_many(policy: Policy, seed: int):
    rng = np.random.default_rng(seed)
    rewards = [rng.integers(-3, 3, size=n).astype(float).tolist() for n in rng.integers(seed % 2, 5, size=9)]
    state = seen(rewards, rng.integers(0, 3, size=9).tolist())
    arms, bounds = bounded_draws(policy, state, count=1, max_per_arm=2, rng=rng)
    assert arms.tolist() == draws(policy, state, count=40, max_per_arm=2)[:1]
    assert bounds.tolist() == arm_bounds(policy, state)[arms].tolist() == [arm_bounds(policy, state).max()]


def test_uniform_draws_every_open_arm_about_equally_often():
    state = seen([[0.0], [9.0], [1.0], [1.0]], [10**6, 10**6, 10**6, 0])
    counts = np.bincount(draws(Uniform(), state, count=3000, max_per_arm=3000), minlength=4)
    assert counts[3] == 0
    np.testing.assert_allclose(counts[:3], 1000, atol=120)  # 4.6 standard deviations


def test_bounds_leave_the_state_as_it_is():
    state = seen(TABLE, [9, 9, 9, 0])
    before = [state.counts.copy(), state.means.copy(), state.lefts.copy()]
    for policy in VARIANTS:
        draws(policy, state, count=8, max_per_arm=3)
    for old, new in zip(before, [state.counts, state.means, state.lefts], strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "ucb_beta", "beta": -1.0},
        {"kind": "ucb_beta", "beta": math.nan},
        {"kind": "threshold_hard", "top_share": 1.0},
        {"kind": "threshold_normal", "top_share": -0.1},
        {"kind": "uniform", "beta": 1.0},
    ],
)
def test_a_parameter_that_cannot_work_is_refused(values: dict[str, object]):
    with pytest.raises(ValidationError):
        TypeAdapter(Policy).validate_python(values)


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(
        ValidationError, match=r"'ucb_beta', 'ucb1', 'threshold_hard', 'threshold_normal', 'uniform'"
    ):
        TypeAdapter(Policy).validate_python({"kind": "ucb2"})
