"""The samples that may be drawn, arm by arm, and the checks on the rewards that come back for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clusterucb_core.bandit.arms import Float64Array, Int64Array
from clusterucb_core.records import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Drawable:
    """The samples of all arms in one array [n], with the start and size of each arm [k].

    `order` [n] are the places of the samples in ascending order of their index.
    """

    samples: Int64Array
    order: Int64Array
    starts: Int64Array
    sizes: Int64Array


def gather_arms(arms: Sequence[IntArray]) -> Drawable:
    """Return the samples of all arms.

    Raises:
        ValueError: an arm that is no array of sample indices, or a sample in two places.
    """
    parts = [_sample_indices(arm, number) for number, arm in enumerate(arms)]
    samples = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
    order = np.argsort(samples, kind="stable")
    ordered = samples[order]
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(f"sample {repeated[0]} is in the arms more than once; every sample has one place")
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    return Drawable(samples, order, np.cumsum(sizes) - sizes, sizes)


def arms_of(drawable: Drawable, samples: IntArray) -> Int64Array:
    """Return the arm of each of the samples [m]."""
    places = drawable.order[np.searchsorted(drawable.samples, samples, sorter=drawable.order)]
    return np.searchsorted(np.cumsum(drawable.sizes), places, side="right")


def earlier_draws(arms: IntArray) -> Int64Array:
    """Return for each draw how many draws of the same arm come before it: [3, 5, 3] gives [0, 0, 1]."""
    if len(arms) == 1:
        return np.zeros(1, dtype=np.int64)
    order = np.argsort(arms, kind="stable")
    ordered = arms[order]
    earlier = np.empty(len(arms), dtype=np.int64)
    earlier[order] = np.arange(len(arms)) - np.searchsorted(ordered, ordered, side="left")
    return earlier


def checked_scores(raw: FloatArray, samples: IntArray) -> Float64Array:
    """Return the scores [m, s] of samples, one column where the reward gives one number a sample.

    Raises:
        ValueError: another number of rows, or scores that are not finite.
    """
    rewards = np.asarray(raw, dtype=np.float64)
    m = len(samples)
    if rewards.ndim not in (1, 2) or len(rewards) != m or rewards.size < m:
        raise ValueError(f"rewards of shape {rewards.shape} for {m} samples; return [{m}] or [{m}, subtasks]")
    scores = rewards.reshape(m, -1)
    finite = np.isfinite(scores)
    if not finite.all():
        first = int(np.argmin(finite.all(axis=1)))
        raise ValueError(
            f"the reward of sample {samples[first]} is {rewards[first]}, not a finite number; "
            "leave samples out of the arms that cannot be scored"
        )
    return scores


def largest_scores(scores: Float64Array) -> Float64Array:
    """Return the reward [m] of samples with scores [m, s], their largest."""
    return scores[:, 0] if scores.shape[1] == 1 else scores.max(axis=1)


def _sample_indices(arm: IntArray, number: int) -> Int64Array:
    indices = np.asarray(arm)
    if indices.size == 0:
        return np.zeros(0, dtype=np.int64)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(
            f"arm {number} must be a one-dimensional int array of sample indices, "
            f"not {indices.dtype} of shape {indices.shape}"
        )
    if indices.min() < 0:
        raise ValueError(f"arm {number} holds the negative sample index {indices.min()}")
    return indices.astype(np.int64)
