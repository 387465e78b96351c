import numpy as np
import pytest

from clusterucb_core.bandit.arms import ArmState, add_rewards, arm_stds, fresh_arms, ranked_rewards


def test_sums_agree_with_numpy_however_the_rewards_are_batched():
    rng = np.random.default_rng(0)
    arms, rewards = rng.integers(4, size=300), rng.normal(size=300)
    for batch in (1, 7, 300):
        state = fresh_arms([300] * 4, capacity=300)
        for start in range(0, 300, batch):
            add_rewards(state, arms[start : start + batch], rewards[start : start + batch])
        groups = [rewards[arms == arm] for arm in range(4)]
        np.testing.assert_allclose(state.means, [group.mean() for group in groups], rtol=1e-12)
        np.testing.assert_allclose(arm_stds(state), [group.std() for group in groups], rtol=1e-12)
        np.testing.assert_array_equal(state.maxima, [group.max() for group in groups])
        np.testing.assert_array_equal(state.lefts, [300 - len(group) for group in groups])


@pytest.mark.parametrize("batch", [1, 5, 1000])
def test_a_large_offset_costs_the_deviation_no_precision(batch: int):
    rewards = 1e6 + 1e-3 * np.random.default_rng(1).normal(size=1000)
    state = fresh_arms([1000], capacity=1000)
    for start in range(0, 1000, batch):
        add_rewards(state, np.zeros(len(rewards[start : start + batch]), int), rewards[start : start + batch])
    exact = float(np.std((rewards - 1e6).astype(np.longdouble)))
    # Sums of raw squares would give 0 or a value around 1e-2.
    assert arm_stds(state)[0] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, -7.5, 1e6])
def test_rewards_of_distinct_arms_give_the_same_bits_one_by_one_and_together(offset: float):
    rng = np.random.default_rng(3)
    single, together = (fresh_arms([40] * 5, capacity=90) for _ in range(2))
    for _ in range(30):
        arms, rewards = rng.permutation(4)[:3], rng.normal(size=3) + offset
        add_rewards(together, arms, rewards)
        for arm, reward in zip(arms, rewards, strict=True):
            add_rewards(single, np.array([arm]), np.array([reward]))
    for name in ArmState.__slots__:
        np.testing.assert_array_equal(getattr(single, name), getattr(together, name))


def test_equal_rewards_have_a_deviation_of_exactly_zero():
    state = fresh_arms([20], capacity=20)
    add_rewards(state, np.zeros(3, int), np.full(3, 0.1))
    add_rewards(state, np.zeros(11, int), np.full(11, 0.1))
    assert arm_stds(state)[0] == 0.0
    assert state.means[0] == 0.1


def test_an_arm_without_rewards_has_no_mean_and_no_deviation():
    state = fresh_arms([2, 2], capacity=4)
    add_rewards(state, np.array([1]), np.array([-3.0]))
    assert np.isnan(state.means[0])
    assert np.isnan(arm_stds(state)[0])
    assert state.maxima.tolist() == [-np.inf, -3.0]


def test_ranked_rewards_are_in_order_with_their_arms_after_every_round():
    rng = np.random.default_rng(2)
    arms, rewards = rng.integers(5, size=60), rng.integers(8, size=60).astype(float)
    state = fresh_arms([60] * 5, capacity=60)
    for start in range(0, 60, 6):
        add_rewards(state, arms[start : start + 6], rewards[start : start + 6])
        values, owners = ranked_rewards(state)
        pairs = sorted(zip(rewards[: start + 6], arms[: start + 6], strict=True))
        assert sorted(zip(values.tolist(), owners.tolist(), strict=True)) == pairs
        assert (np.diff(values) >= 0).all()


def test_rewards_added_between_two_rankings_are_all_merged():
    state = fresh_arms([9], capacity=9)
    for value in (3.0, 1.0, 2.0):
        add_rewards(state, np.array([0]), np.array([value]))
    assert ranked_rewards(state)[0].tolist() == [1.0, 2.0, 3.0]
    add_rewards(state, np.array([0, 0]), np.array([2.5, 0.5]))
    add_rewards(state, np.array([0]), np.array([4.0]))
    assert ranked_rewards(state)[0].tolist() == [0.5, 1.0, 2.0, 2.5, 3.0, 4.0]
