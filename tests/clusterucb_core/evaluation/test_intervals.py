import numpy as np
import pytest
from scipy.stats import t as student_t

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.evaluation.intervals import (
    RESAMPLES,
    crossed_mean,
    loss_result,
    paired_difference,
    seed_mean,
)
from clusterucb_core.seeds import child_rng


def test_the_interval_is_that_of_the_resamples():
    losses = np.array([1.0, 2.0, 4.0, 9.0], dtype=np.float32)
    rng = child_rng(0, "evaluation.bootstrap", "sums")
    means = [losses[draw].mean() for draw in rng.integers(4, size=(RESAMPLES, 4))]
    result = loss_result("selection", "sums", losses)
    assert (result.subject, result.task, result.metric, result.n) == ("selection", "sums", "loss", 4)
    assert result.value == 4.0
    assert (result.low, result.high) == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_the_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(1)
    results = [loss_result("s", f"t{i}", rng.exponential(size=100)) for i in range(200)]
    covered = np.mean([r.low <= 1.0 <= r.high for r in results])
    assert 0.89 <= covered <= 0.99, "a percentile on one side only gives about 0.97 and 0.5"


def test_two_subjects_share_their_resamples():
    losses = np.random.default_rng(2).random(50)
    first, second = loss_result("a", "t", losses), loss_result("b", "t", losses + 1)
    assert second.low - first.low == pytest.approx(1.0)


def test_a_constant_and_a_single_loss_have_an_interval_of_no_width():
    result = loss_result("s", "t", np.array([2.5]))
    assert (result.value, result.low, result.high, result.n) == (2.5, 2.5, 2.5, 1)


def test_many_losses_are_resampled_in_pieces_of_bounded_size():
    result = loss_result("s", "t", np.random.default_rng(3).normal(5, 1, size=6000))
    assert result.low == pytest.approx(5 - 1.96 / np.sqrt(6000), abs=0.02)
    assert result.high == pytest.approx(5 + 1.96 / np.sqrt(6000), abs=0.02)


def test_pairing_removes_what_the_samples_share():
    rng = np.random.default_rng(4)
    shared = rng.normal(0, 10, size=300)
    a, b = shared + rng.normal(0.1, 0.1, size=300), shared
    mean, low, high = paired_difference(a, b, seed=0)
    assert mean == pytest.approx((a - b).mean())
    assert 0.05 < low < mean < high < 0.15
    assert paired_difference(b, a, seed=0) == pytest.approx((-mean, -high, -low), abs=2e-3)
    assert paired_difference(a, b, seed=1) != (mean, low, high)


@pytest.mark.parametrize("losses", [[], [1.0, np.nan], [np.inf]])
def test_nothing_and_what_is_not_finite_are_errors(losses):
    with pytest.raises(InvalidTarget, match=r"t: (no value|1 of \d values not finite)"):
        loss_result("s", "t", np.array(losses))


def test_values_of_other_lengths_cannot_be_paired():
    with pytest.raises(InvalidTarget, match=r"\(2,\) and \(3,\) values cannot be paired"):
        paired_difference(np.zeros(2), np.zeros(3), seed=0)


def test_the_interval_over_seeds_and_rows_follows_its_formula():
    values = np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 10.0]])
    # mean 4; seeds 3 and 5; rows 2, 2 and 8: MS_seeds = 3 * 2, MS_rows = 2 * 12, MS_rest = 4 * 1 / 2
    spread = 6.0 + (24.0 - 2.0)
    half = student_t.ppf(0.975, (spread / 6.0) ** 2) * np.sqrt(spread / 6)
    assert crossed_mean(values) == pytest.approx((4.0, 4.0 - half, 4.0 + half))


@pytest.mark.parametrize("seed_sd", [0.0, 0.05, 1.0])
def test_the_interval_over_three_seeds_and_rows_covers_the_true_mean(seed_sd):
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(400):
        rows, seeds = rng.normal(0, 0.5, size=100), rng.normal(0, seed_sd, size=(3, 1))
        _, low, high = crossed_mean(1.0 + rows + seeds + rng.normal(0, 0.3, size=(3, 100)))
        covered.append(low <= 1.0 <= high)
    assert 0.92 <= np.mean(covered) <= 0.99, "1.96 in place of t, or rows alone, give 0.8 and less at sd 1"


def test_seeds_that_agree_leave_the_interval_over_rows():
    rows = np.random.default_rng(6).normal(2, 1, size=400)
    mean, low, high = crossed_mean(np.stack([rows, rows, rows]))
    error = 1.96 * rows.std(ddof=1) / np.sqrt(400)
    assert (mean, low, high) == pytest.approx(
        (rows.mean(), rows.mean() - error, rows.mean() + error), abs=1e-4
    )


def test_a_single_row_has_no_interval_and_a_single_seed_is_an_error():
    mean, low, high = crossed_mean(np.array([[1.0], [3.0]]))
    assert mean == 2.0
    assert np.isnan([low, high]).all()
    with pytest.raises(InvalidTarget, match=r"1 seed has no interval .*random_seeds to 2 or more"):
        crossed_mean(np.ones((1, 5)))
    with pytest.raises(InvalidTarget, match="1 of 4 values not finite"):
        crossed_mean(np.array([[1.0, 2.0], [np.nan, 1.0]]))


def test_the_mean_of_one_value_a_seed_has_students_interval():
    mean, low, high = seed_mean(np.array([0.1, 0.2, 0.6]))
    expected = student_t.interval(0.95, 2, loc=0.3, scale=np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3))
    assert (mean, low, high) == pytest.approx((0.3, *expected))
    with pytest.raises(InvalidTarget, match="1 seed has no interval"):
        seed_mean(np.ones(1))
