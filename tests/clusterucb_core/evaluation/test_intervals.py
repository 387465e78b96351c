import numpy as np
import pytest

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.evaluation.intervals import RESAMPLES, loss_result, paired_difference
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
