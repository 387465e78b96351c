"""What the bandit has seen of every arm: running means and deviations, samples left, ordered rewards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb_core.records import FloatArray, IntArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]


@dataclass(slots=True)
class ArmState:
    """Running sums of k arms; only the functions of this module change it.

    `means` is NaN and `maxima` -inf before an arm's first reward; `squares` is the sum of squared distances
    to the mean. Of the first `n_rewards` entries of the two `history` buffers, the first `n_ranked` are in
    ascending order of reward and the rest wait to be merged: a policy without thresholds never sorts.
    """

    counts: Int64Array
    means: Float64Array
    squares: Float64Array
    maxima: Float64Array
    lefts: Int64Array
    history: Float64Array
    history_arms: Int64Array
    n_rewards: int
    n_ranked: int


def fresh_arms(sizes: Sequence[int] | IntArray, capacity: int) -> ArmState:
    """Return the state of arms that no sample was drawn from.

    Args:
        sizes: samples in each arm, [k].
        capacity: the largest number of rewards that will be added.
    """
    lefts = np.array(sizes, dtype=np.int64)
    k = len(lefts)
    return ArmState(
        counts=np.zeros(k, dtype=np.int64),
        means=np.full(k, np.nan),
        squares=np.zeros(k),
        maxima=np.full(k, -np.inf),
        lefts=lefts,
        history=np.zeros(capacity),
        history_arms=np.zeros(capacity, dtype=np.int64),
        n_rewards=0,
        n_ranked=0,
    )


def add_rewards(state: ArmState, arms: IntArray, rewards: FloatArray) -> None:
    """Add one round of rewards to the state and take its samples off `lefts`.

    The sums are taken around the mean so far (around the first reward of a new arm), as in Chan, Golub and
    LeVeque (1983): a large common offset costs no precision and equal rewards give a deviation of exactly 0.

    Args:
        state: changed in place.
        arms: arm of each reward, [m].
        rewards: [m], finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    k = len(state.counts)
    base = state.means.copy()
    fresh = state.counts[arms] == 0
    base[arms[fresh][::-1]] = values[fresh][::-1]  # the last assignment stays: the first reward of each arm
    offsets = values - base[arms]
    added = np.bincount(arms, minlength=k)
    sums = np.bincount(arms, weights=offsets, minlength=k)
    counts = state.counts + added
    shift = sums / np.maximum(counts, 1)
    state.squares += np.bincount(arms, weights=offsets * offsets, minlength=k) - sums * shift
    np.maximum(state.squares, 0.0, out=state.squares)
    state.means = base + shift
    state.counts = counts
    state.lefts = state.lefts - added
    np.maximum.at(state.maxima, arms, values)
    _append_history(state, arms, values)


def arm_stds(state: ArmState) -> Float64Array:
    """Return the population standard deviation of every arm's rewards [k], NaN before its first."""
    variances = np.full(len(state.counts), np.nan)
    np.divide(state.squares, state.counts, out=variances, where=state.counts > 0)
    return np.sqrt(variances)


def ranked_rewards(state: ArmState) -> tuple[Float64Array, Int64Array]:
    """Return all rewards so far in ascending order and the arm of each, two [n] views to read only."""
    n, ranked = state.n_rewards, state.n_ranked
    if ranked < n:
        order = np.argsort(state.history[ranked:n], kind="stable")
        values, arms = state.history[ranked:n][order], state.history_arms[ranked:n][order]
        places = np.searchsorted(state.history[:ranked], values, side="right")
        state.history[:n] = np.insert(state.history[:ranked], places, values)
        state.history_arms[:n] = np.insert(state.history_arms[:ranked], places, arms)
        state.n_ranked = n
    return state.history[:n], state.history_arms[:n]


def _append_history(state: ArmState, arms: IntArray, values: Float64Array) -> None:
    end = state.n_rewards + len(values)
    state.history[state.n_rewards : end] = values
    state.history_arms[state.n_rewards : end] = arms
    state.n_rewards = end
