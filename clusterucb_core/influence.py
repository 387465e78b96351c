"""Influence of pool samples on a target, and the measures that compare a selection with the true top k.

Influence of sample z: the largest, over the target's subtasks, of the mean over the subtask's validation rows
v of <phi(z), gamma(v)> (LESS, arXiv 2402.04333).
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clusterucb_core.records import FloatArray, IntArray

Aggregate = Literal["max", "mean"]

# 32 MiB of float64 per block of features.
_BLOCK_VALUES = 2**22


def influence_scores(
    features: FloatArray, target_features: FloatArray, *, subtask: IntArray, aggregate: Aggregate = "max"
) -> FloatArray:
    """Return the influence of every sample on a target.

    Args:
        features: one unit row per sample, [n, d].
        target_features: one unit row per validation row, [v, d].
        subtask: index of each validation row's subtask, [v], every index of 0..s-1 at least once.
        aggregate: `max` (the paper's) or `mean` over subtasks.

    Returns:
        float64 [n].

    Raises:
        ValueError: as `subtask_scores`, or an unknown aggregate.
    """
    return aggregate_scores(subtask_scores(features, target_features, subtask), aggregate)


def subtask_scores(features: FloatArray, target_features: FloatArray, subtask: IntArray) -> FloatArray:
    """Return the mean inner product of every sample with the validation rows of every subtask.

    The mean is taken over the target features first, which the inner product allows, so that the cost is
    n x s x d. Features are read in blocks: the memory taken beside the result does not grow with n.

    Args:
        features: one unit row per sample, [n, d], any float type; a memory map is fine.
        target_features: one unit row per validation row, [v, d].
        subtask: index of each validation row's subtask, [v], every index of 0..s-1 at least once.

    Returns:
        float64 [n, s].

    Raises:
        ValueError: shapes that do not fit, a subtask without validation rows, or a score that is not finite.
    """
    _check_shapes(features, target_features, subtask)
    means = _subtask_means(target_features, subtask)
    scores = np.empty((len(features), len(means)))
    rows = max(1, _BLOCK_VALUES // max(1, features.shape[1]))
    for start in range(0, len(features), rows):
        block = np.asarray(features[start : start + rows], dtype=np.float64)
        scores[start : start + rows] = block @ means.T
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(broken):
        raise ValueError(
            f"the features of sample {broken[0]} hold NaN or infinity ({len(broken)} samples in all); "
            "exclude them first"
        )
    return scores


def aggregate_scores(scores: FloatArray, aggregate: Aggregate) -> FloatArray:
    """Return one score per sample [n] from scores per subtask [n, s]: their maximum or their mean.

    Raises:
        ValueError: an unknown aggregate.
    """
    match aggregate:
        case "max":
            return scores.max(axis=1)
        case "mean":
            return scores.mean(axis=1)
        case _:  # callers in plain Python can pass any string
            raise ValueError(f"aggregate={aggregate!r} is unknown; known: max, mean")


def top_k(scores: FloatArray, k: int) -> IntArray:
    """Return the indices of the k largest scores, best first; ties go to the lowest index.

    Raises:
        ValueError: k is not in 0..n, or a score is NaN.
    """
    if not 0 <= k <= len(scores):
        raise ValueError(f"k={k} must lie in 0..{len(scores)}, the number of scores")
    if np.isnan(scores).any():
        raise ValueError(f"the score of sample {int(np.argmax(np.isnan(scores)))} is NaN; exclude it first")
    return np.argsort(-scores, kind="stable")[:k]


def captured_influence(influence_all: FloatArray, selected: IntArray, k: int) -> float:
    """Return how much of the influence above chance a selection holds, against the true top k.

    (sum over the selected - k x pool mean) / (sum over the true top k - k x pool mean): 1 for the true top k,
    about 0 for a random selection. 1 where all samples are equal, since then nothing can be missed.

    Args:
        influence_all: influence of all n samples under full gradients.
        selected: [k] distinct sample indices.
        k: size of the selection.

    Raises:
        ValueError: `selected` is not k distinct indices of the pool.
    """
    _check_selected(selected, k, len(influence_all))
    values = np.asarray(influence_all, dtype=np.float64)
    chance = k * float(values.mean())
    reachable = float(values[top_k(values, k)].sum()) - chance
    if np.ptp(values) == 0.0 or k == len(values):
        return 1.0
    return (float(values[np.asarray(selected)].sum()) - chance) / reachable


def recall_at_k(influence_all: FloatArray, selected: IntArray, k: int) -> float:
    """Return the share of the true top k that was selected.

    Samples that tie for the last places of the top k are worth the same, so any of them fills such a place:
    the result does not depend on the order of the pool.

    Args:
        influence_all: influence of all n samples under full gradients.
        selected: [k] distinct sample indices.
        k: size of the selection.

    Raises:
        ValueError: `selected` is not k distinct indices of the pool.
    """
    _check_selected(selected, k, len(influence_all))
    values = np.asarray(influence_all)
    picked = values[np.asarray(selected)]
    last = values[top_k(values, k)[-1]]
    places = k - np.count_nonzero(values > last)
    tied = min(np.count_nonzero(picked == last), places)
    return int(np.count_nonzero(picked > last) + tied) / k


def _check_shapes(features: FloatArray, target_features: FloatArray, subtask: IntArray) -> None:
    if features.ndim != 2 or target_features.ndim != 2 or features.shape[1] != target_features.shape[1]:
        raise ValueError(
            f"features {features.shape} and target features {target_features.shape} "
            "must be [n, d] and [v, d] with the same d"
        )
    if np.shape(subtask) != (len(target_features),):
        raise ValueError(
            f"subtask has shape {np.shape(subtask)}; one index per {len(target_features)} rows is needed"
        )


def _subtask_means(target_features: FloatArray, subtask: IntArray) -> NDArray[np.float64]:
    indices = np.asarray(subtask)
    if not len(indices):
        raise ValueError("the target has no validation rows; at least one is needed")
    if indices.dtype.kind not in "iu" or indices.min() < 0:
        raise ValueError(f"subtask must hold int indices from 0, not {indices.dtype} from {indices.min()}")
    counts = np.bincount(indices)
    if (counts == 0).any():
        raise ValueError(
            f"subtask {int(np.argmin(counts))} of 0..{len(counts) - 1} has no validation rows; "
            "number the subtasks without gaps"
        )
    rows = np.asarray(target_features, dtype=np.float64)
    if not np.isfinite(rows).all():
        bad = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise ValueError(f"the features of validation row {bad} hold NaN or infinity")
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, indices, rows)
    return sums / counts[:, None]


def _check_selected(selected: IntArray, k: int, n: int) -> None:
    indices = np.asarray(selected)
    distinct = len(np.unique(indices))
    if k < 1 or indices.shape != (k,) or distinct != k:
        raise ValueError(
            f"{distinct} distinct of {indices.size} selected samples; k={k} distinct ones are needed"
        )
    if indices.min() < 0 or indices.max() >= n:
        raise ValueError(f"selected samples {indices.min()}..{indices.max()} must lie in 0..{n - 1}")
