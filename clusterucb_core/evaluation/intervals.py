"""Means with 95 % intervals: over rows, over seeds, and over both.

Over rows: percentiles 2.5 and 97.5 of the means of 2,000 seeded bootstrap resamples. Over seeds: Student's t.
Over both, where every seed has a value for the same rows: the model of random rows and random seeds of
Dorfman, Berbaum and Metz (Investigative Radiology 27, 1992), with the degrees of freedom of Hillis
(Statistics in Medicine 26, 2007). A bootstrap of three seeds would be far too narrow.
"""

import math

import numpy as np
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.records import EvalResult, FloatArray
from clusterucb_core.seeds import child_rng

RESAMPLES = 2000
_NORMAL_QUANTILE = 1.959963984540054
_DRAWS_AT_ONCE = 1_000_000


def loss_result(subject: str, target_name: str, losses: FloatArray) -> EvalResult:
    """Return the mean of the losses with its 95 % bootstrap interval.

    The resamples depend on the target's name and the number of losses only, so two subjects are compared on
    the same ones.

    Args:
        subject: what was evaluated, for instance `selection` or `random:0`.
        target_name: name of the target; it becomes the task.
        losses: mean loss of each test sample, float [n].

    Raises:
        InvalidTarget: there is no loss, or one is not finite.
    """
    mean, low, high = _interval(losses, seed=0, key=target_name)
    return EvalResult(subject, target_name, "loss", mean, low, high, len(losses))


def paired_difference(a: FloatArray, b: FloatArray, seed: int) -> tuple[float, float, float]:
    """Return the mean of `a - b` over samples with its 95 % bootstrap interval.

    Args:
        a: a value for each sample, float [n].
        b: the same samples' other value, float [n].
        seed: seed of the resamples.

    Returns:
        Mean, lower and upper end.

    Raises:
        InvalidTarget: the lengths differ, there is no value, or one is not finite.
    """
    if a.shape != b.shape:
        raise InvalidTarget(f"{a.shape} and {b.shape} values cannot be paired; evaluate the same test rows")
    return _interval(a - b, seed=seed, key="paired_difference")


def crossed_mean(values: FloatArray) -> tuple[float, float, float]:
    """Return the mean of values over seeds and rows, with its 95 % interval over both.

    Values are taken as x_sr = mu + a_s + b_r + e_sr, with random effects of S seeds and R rows. With the mean
    squares MS of that two-way layout,

        variance of the mean = (MS_seeds + max(MS_rows - MS_rest, 0)) / (S R)
        degrees of freedom = (MS_seeds + max(MS_rows - MS_rest, 0))^2 / (MS_seeds^2 / (S - 1))

    Args:
        values: float [s, r], two seeds or more.

    Returns:
        Mean, lower and upper end; the ends are NaN for a single row.

    Raises:
        InvalidTarget: there are fewer than two seeds, no row, or a value is not finite.
    """
    n_seeds, n_rows = values.shape
    _refuse_unusable(values.ravel(), key="crossed_mean")
    if n_seeds < 2:
        raise InvalidTarget(
            f"{n_seeds} seed has no interval over seeds; set evaluate.random_seeds to 2 or more"
        )
    exact = values.astype(np.float64)
    mean = float(exact.mean())
    if n_rows == 1:
        return mean, math.nan, math.nan
    of_seeds, of_rows = exact.mean(axis=1), exact.mean(axis=0)
    rest = exact - of_seeds[:, None] - of_rows[None, :] + mean
    ms_seeds = n_rows * float(of_seeds.var(ddof=1))
    ms_rows = n_seeds * float(of_rows.var(ddof=1))
    ms_rest = float((rest**2).sum()) / ((n_seeds - 1) * (n_rows - 1))
    spread = ms_seeds + max(ms_rows - ms_rest, 0.0)
    # equal seeds leave a spread between rows alone: its quantile is the normal one
    freedom = (n_seeds - 1) * (spread / ms_seeds) ** 2 if ms_seeds > 0 else math.inf
    half = _t_quantile(freedom) * math.sqrt(spread / (n_seeds * n_rows))
    return mean, mean - half, mean + half


def seed_mean(values: FloatArray) -> tuple[float, float, float]:
    """Return the mean of one value a seed with its 95 % interval, mean +- t s / sqrt(S) at S - 1 degrees.

    Args:
        values: float [s], two seeds or more.

    Raises:
        InvalidTarget: there are fewer than two seeds, or a value is not finite.
    """
    _refuse_unusable(values, key="seed_mean")
    n = len(values)
    if n < 2:
        raise InvalidTarget(f"{n} seed has no interval over seeds; set evaluate.random_seeds to 2 or more")
    mean = float(values.mean())
    half = _t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def _interval(values: FloatArray, *, seed: int, key: str) -> tuple[float, float, float]:
    n = len(values)
    _refuse_unusable(values, key=key)
    rng = child_rng(seed, "evaluation.bootstrap", key)
    exact = values.astype(np.float64)
    rows = max(1, _DRAWS_AT_ONCE // n)
    means = [
        exact[rng.integers(n, size=(min(rows, RESAMPLES - done), n))].mean(axis=1)
        for done in range(0, RESAMPLES, rows)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(exact.mean()), float(low), float(high)


def _t_quantile(freedom: float) -> float:
    return float(stdtrit(freedom, 0.975)) if math.isfinite(freedom) else _NORMAL_QUANTILE


def _refuse_unusable(values: FloatArray, *, key: str) -> None:
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        seen = "no value" if n == 0 else f"{int((~np.isfinite(values)).sum())} of {n} values not finite"
        raise InvalidTarget(
            f"{key}: {seen}; evaluate at least one test row with a model whose loss is finite"
        )
