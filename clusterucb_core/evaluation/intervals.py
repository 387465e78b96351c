"""Means with 95 % bootstrap intervals: percentiles 2.5 and 97.5 of the means of 2,000 seeded resamples."""

import numpy as np

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.records import EvalResult, FloatArray
from clusterucb_core.seeds import child_rng

RESAMPLES = 2000
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


def _interval(values: FloatArray, *, seed: int, key: str) -> tuple[float, float, float]:
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        seen = "no value" if n == 0 else f"{int((~np.isfinite(values)).sum())} of {n} values not finite"
        raise InvalidTarget(
            f"{key}: {seen}; evaluate at least one test row with a model whose loss is finite"
        )
    rng = child_rng(seed, "evaluation.bootstrap", key)
    exact = values.astype(np.float64)
    rows = max(1, _DRAWS_AT_ONCE // n)
    means = [
        exact[rng.integers(n, size=(min(rows, RESAMPLES - done), n))].mean(axis=1)
        for done in range(0, RESAMPLES, rows)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(exact.mean()), float(low), float(high)
