import numpy as np
import polars as pl

from clusterucb_core.report.draws import draw_bins, running_kth_best


def pulls(rewards, *, kinds=None, bounds=None):
    n = len(rewards)
    return pl.DataFrame(
        {
            "step": range(n),
            "reward": rewards,
            "kind": kinds or ["draw"] * n,
            "bound": bounds or [0.5] * n,
            "arm_mean": [0.25] * n,
        },
        schema_overrides={"bound": pl.Float64, "reward": pl.Float64},
    )


def test_the_running_kth_best_is_that_of_all_rewards_so_far():
    rewards = np.random.default_rng(0).normal(size=40).tolist()
    steps, levels = running_kth_best(pulls(rewards), 5)
    assert steps.tolist() == list(range(4, 40))
    assert levels.tolist() == [sorted(rewards[: step + 1])[-5] for step in steps]


def test_fewer_rewards_than_k_have_no_kth_best():
    steps, levels = running_kth_best(pulls([1.0, 2.0]), 3)
    assert len(steps) == len(levels) == 0


def test_bins_share_out_the_draws_and_what_was_known_before_is_none():
    kinds = ["known"] * 4 + ["cold_start"] * 3 + ["draw"] * 38 + ["audit"] * 2
    bounds = [None] * 7 + [0.5] * 38 + [None] * 2
    bins = draw_bins(pulls([1.0] * 47, kinds=kinds, bounds=bounds), 3)
    assert len(bins) == 20
    assert sum(item.n for item in bins) == 43
    assert {item.n for item in bins} == {2, 3}
    assert sum(item.by_bound for item in bins) == 38
    assert (bins[0].first, bins[-1].last) == (4, 46)


def test_the_mean_of_nothing_is_none():
    (only,) = draw_bins(pulls([1.5], kinds=["audit"], bounds=[None]), 3)
    assert (only.mean_bound, only.mean_arm, only.mean_reward, only.kth_best) == (None, None, 1.5, None)


def test_no_draws_no_bins():
    assert draw_bins(pulls([]), 3) == ()
