"""What a contextual policy expects of every sample: rewards seen so far, regressed on side information.

Each subtask has a regression of its own over the same inputs, so all share one Gram matrix; the expectation
of a sample is the largest over its subtasks, as its reward is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clusterucb_core.bandit.arms import Float64Array, Int64Array, largest_first
from clusterucb_core.bandit.regression import (
    RidgeData,
    RidgeFit,
    add_rows,
    fit_ridge,
    fresh_rows,
    predict,
    prediction_stds,
)
from clusterucb_core.records import FloatArray, IntArray

# 64 MiB of float32 at once while side information is read
_BLOCK_VALUES = 2**24
# A regression stands until its rows have grown by this share: what less would add cannot move it by much.
_GROWTH = 1 / 32


@dataclass(slots=True)
class Outlook:
    """The side information of n samples and the regression on it; only this module changes it.

    `context` [n, f] is read as it stands and divided by `scale`; `guesses` [n, g] are prior columns of unit
    variance. `open` [n] tells which samples may still be drawn. `expected` [n] was
    computed from `fitted` rows of `data`; before there are any it is the largest guess, if there are guesses.
    """

    context: FloatArray
    scale: float
    guesses: NDArray[np.float32]
    open: NDArray[np.bool_]
    width: float
    data: RidgeData | None
    expected: Float64Array | None
    fitted: int


def open_outlook(
    samples: IntArray, context: FloatArray, prior: FloatArray | None, *, width: float = 0.0
) -> Outlook:
    """Return the outlook over the samples that may be drawn.

    Args:
        samples: indices of the samples that may be drawn, rows of `context`.
        context: side information of every sample of the pool, [n, f]; a memory map is fine.
        prior: a cheap guess of the reward, [n] or [n, s], or None.
        width: how many standard deviations of the prediction are added to what is expected.

    Raises:
        ValueError: shapes that do not fit, or side information that is not finite.
    """
    if context.ndim != 2 or (len(samples) and int(samples.max()) >= len(context)):
        raise ValueError(
            f"context of shape {context.shape} must have a row for every sample, of which the last is "
            f"{int(samples.max()) if len(samples) else 'none'}"
        )
    may_draw = np.zeros(len(context), dtype=np.bool_)
    may_draw[samples] = True
    columns, largest = _prior_columns(prior, len(context))
    return Outlook(context, _spread(context), columns, may_draw, width, None, largest, 0)


def observe(outlook: Outlook, samples: IntArray, scores: FloatArray) -> None:
    """Add the scores [m, s] of drawn samples to the regression, and close the samples."""
    outlook.open[samples] = False
    if outlook.data is None:
        width = outlook.context.shape[1] + outlook.guesses.shape[1]
        outlook.data = fresh_rows(width, scores.shape[1])
    with _one_thread():
        outlook.data = add_rows(outlook.data, _inputs(outlook, samples), scores)


def expectations(outlook: Outlook) -> Float64Array | None:
    """Return what is expected of every sample [n], refitted where enough rewards came in since the last call.

    None while nothing is known of any sample.
    """
    data = outlook.data
    if data is None or data.n - outlook.fitted < _GROWTH * outlook.fitted:
        return outlook.expected
    expected = np.empty(len(outlook.context))
    with _one_thread():
        fit = fit_ridge(data)
        for rows in _blocks(outlook):
            expected[rows] = _expected(fit, _inputs(outlook, rows), outlook.width).max(axis=1)
    outlook.expected, outlook.fitted = expected, data.n
    return expected


def best_open(outlook: Outlook, expected: Float64Array, count: int) -> Int64Array:
    """Return the open samples of which most is expected, best first; ties go to the lowest index."""
    candidates = np.flatnonzero(outlook.open)
    return candidates[largest_first(expected[candidates], count)]


def _one_thread() -> threadpool_limits:
    """How a product is divided among threads moves its last bits, and with them a draw."""
    return threadpool_limits(limits=1, user_api="blas")


def _expected(fit: RidgeFit, inputs: FloatArray, width: float) -> Float64Array:
    predicted = predict(fit, inputs)
    return predicted + width * prediction_stds(fit, inputs) if width else predicted


def _inputs(outlook: Outlook, rows: IntArray) -> NDArray[np.float32]:
    context = np.asarray(outlook.context[rows], dtype=np.float32) / np.float32(outlook.scale)
    return np.concatenate([context, outlook.guesses[rows]], axis=1)


def _blocks(outlook: Outlook) -> Iterator[Int64Array]:
    n = len(outlook.context)
    size = max(1, _BLOCK_VALUES // max(1, outlook.context.shape[1]))
    for start in range(0, n, size):
        yield np.arange(start, min(n, start + size))


def _spread(context: FloatArray) -> float:
    """Return the square root of the context's total variance: its columns together weigh as one guess."""
    total, squares = np.zeros(context.shape[1]), 0.0
    size = max(1, _BLOCK_VALUES // max(1, context.shape[1]))
    for start in range(0, len(context), size):
        block = np.asarray(context[start : start + size], dtype=np.float64)
        if not np.isfinite(block).all():
            raise ValueError("the context holds NaN or infinity; leave such samples out or mend it")
        total += block.sum(axis=0)
        squares += float((block * block).sum())
    n = max(1, len(context))
    return float(np.sqrt(max(squares / n - float(((total / n) ** 2).sum()), 0.0))) or 1.0


def _prior_columns(prior: FloatArray | None, n: int) -> tuple[NDArray[np.float32], Float64Array | None]:
    if prior is None:
        return np.zeros((n, 0), dtype=np.float32), None
    columns = np.asarray(prior, dtype=np.float64).reshape(len(prior), -1)
    if len(columns) != n or not np.isfinite(columns).all():
        raise ValueError(f"prior of shape {np.shape(prior)} must hold {n} rows of finite numbers")
    spread = columns.std(axis=0)
    scaled = (columns - columns.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    return scaled.astype(np.float32), columns.max(axis=1)
