"""What the bandit has seen of every arm: running means and deviations, samples left, ordered rewards."""

import math
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

    `means` and `stds` (population) are NaN and `maxima` -inf before an arm's first reward; `squares` is the
    sum of squared distances to the mean. Of the first `n_rewards` entries of the two `history` buffers, the
    first `n_ranked` are in ascending order of reward and the rest wait to be merged: a policy without
    thresholds never sorts.
    """

    counts: Int64Array
    means: Float64Array
    squares: Float64Array
    stds: Float64Array
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
        stds=np.full(k, np.nan),
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
    if len(values) == 1:
        _add_one(state, int(arms[0]), float(values[0]))
    else:
        _add_many(state, arms, values)
    end = state.n_rewards + len(values)
    state.history[state.n_rewards : end] = values
    state.history_arms[state.n_rewards : end] = arms
    state.n_rewards = end


def arm_stds(state: ArmState) -> Float64Array:
    """Return the population standard deviation of every arm's rewards [k], to read only: NaN before any."""
    return state.stds


def ranked_rewards(state: ArmState) -> tuple[Float64Array, Int64Array]:
    """Return all rewards so far in ascending order and the arm of each, two [n] views to read only."""
    n, ranked = state.n_rewards, state.n_ranked
    if ranked < n:
        order = np.argsort(state.history[ranked:n], kind="stable")
        values, arms = state.history[ranked:n][order], state.history_arms[ranked:n][order]
        places = np.searchsorted(state.history[:ranked], values, side="right")
        _merge(state.history, places, values, ranked=ranked)
        _merge(state.history_arms, places, arms, ranked=ranked)
        state.n_ranked = n
    return state.history[:n], state.history_arms[:n]


def largest_first(values: FloatArray, count: int) -> Int64Array:
    """Return the places of the `count` largest of values [n], largest first; ties go to the lowest place."""
    places = np.arange(len(values))
    if count < len(values):
        last = -np.partition(-values, count - 1)[count - 1] if count else np.inf
        places = np.flatnonzero(values >= last)
    return places[np.argsort(-values[places], kind="stable")][:count]


def _merge(
    buffer: Float64Array | Int64Array,
    places: IntArray,
    added: Float64Array | Int64Array,
    *,
    ranked: int,
) -> None:
    """Insert values before the places of a buffer's first `ranked` entries; what is below them stays put."""
    first = int(places[0])
    buffer[first : ranked + len(added)] = np.insert(buffer[first:ranked], places - first, added)


def _add_many(state: ArmState, arms: IntArray, values: Float64Array) -> None:
    k = len(state.counts)
    base = state.means.copy()
    fresh = state.counts[arms] == 0
    base[arms[fresh][::-1]] = values[fresh][::-1]  # the last assignment stays: the first reward of each arm
    offsets = values - base[arms]
    added = np.bincount(arms, minlength=k)
    sums = np.bincount(arms, weights=offsets, minlength=k)
    state.counts += added
    state.lefts -= added
    shift = sums / np.maximum(state.counts, 1)
    state.squares += np.bincount(arms, weights=offsets * offsets, minlength=k) - sums * shift
    np.maximum(state.squares, 0.0, out=state.squares)
    state.means = base + shift
    np.maximum.at(state.maxima, arms, values)
    variances = np.divide(state.squares, state.counts, out=np.full(k, np.nan), where=state.counts > 0)
    state.stds = np.sqrt(variances)


def _add_one(state: ArmState, arm: int, value: float) -> None:
    """Add one reward as `_add_many` would, to the last bit, without a look at the other arms."""
    count = state.counts.item(arm)
    base = state.means.item(arm) if count else value
    offset = value - base
    shift = offset / (count + 1)
    squares = max(state.squares.item(arm) + (offset * offset - offset * shift), 0.0)
    state.counts[arm] = count + 1
    state.lefts[arm] -= 1
    state.squares[arm] = squares
    state.means[arm] = base + shift
    state.maxima[arm] = max(state.maxima.item(arm), value)
    state.stds[arm] = math.sqrt(squares / (count + 1))
