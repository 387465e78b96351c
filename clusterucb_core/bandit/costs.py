"""Draws that cost more or less: what a round takes is kept within a limit, where it gains the most.

A budget counts draws, but a gradient takes operations in proportion to its tokens: a policy that likes long
samples would overrun it. Under a limit a round takes, of all choices within what is left, the one of largest
expected improvement over the k-th best (Mockus, 1975; by cost as in Snoek et al., 2012): a unit of cost gets
the price at which the samples that are best net of it are affordable (Lagrangian relaxation of a knapsack).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]

from clusterucb_core.bandit.arms import Float64Array, Int64Array, largest_first
from clusterucb_core.records import FloatArray, IntArray

# The price is sought between a billionth of the highest and that: halved so often on a scale of ratios.
_HALVINGS = 24
_LOWEST = 1e-9
# Predictions without an error would leave nothing to tell samples below the k-th best apart by.
_LEAST_STD = 0.05


@dataclass(frozen=True, slots=True)
class CostLimit:
    """All `draws`, an audit's included, are to cost `limit` x as much as as many average samples, or less.

    `costs` [n] are those of every sample of the pool, for instance its tokens. `k` samples will be selected:
    so many are drawn first, whatever they cost, and the search for better ones keeps to what is left. Where
    they left too little, it takes the cheapest.

    Raises:
        ValueError: `k` is below 1, `limit` not above 0, or a cost is not positive.
    """

    costs: FloatArray
    limit: float
    k: int
    draws: int

    def __post_init__(self):
        if self.k < 1 or not self.limit > 0.0 or not bool((self.costs > 0.0).all()):
            raise ValueError(
                f"a cost limit with k={self.k}, limit={self.limit}: k must be at least 1, the limit and "
                "every cost above 0"
            )


@dataclass(frozen=True, slots=True)
class Seen:
    """The samples [m] seen so far, their rewards [m], and how far predictions of some were off, [e].

    The first `known` of the samples were not drawn, and cost nothing.
    """

    samples: IntArray
    rewards: FloatArray
    errors: FloatArray
    known: int = 0


def best_within(
    limit: CostLimit, left: Int64Array, expected: FloatArray, seen: Seen, *, count: int, at_random: int = 0
) -> Int64Array:
    """Return the samples of a round that the limit leaves room for and that promise most, best first.

    What is promised is the expected improvement over the k-th best of the pool, as it stands for what was
    drawn and is expected of the rest; before any reward it is what is expected.

    Args:
        limit: what draws may cost.
        left: the samples that may be drawn, [m].
        expected: the expected reward of every sample of the pool, [n].
        seen: what was drawn.
        count: draws of the round.
        at_random: those of them that chance will choose, at the mean cost of the pool.

    Returns:
        count - at_random samples.
    """
    mean = float(np.concatenate([limit.costs[left], limit.costs[seen.samples]]).mean())
    spent, drawn = float(limit.costs[seen.samples[seen.known :]].sum()), len(seen.samples) - seen.known
    remaining = limit.limit * mean * limit.draws - spent
    # each of the draws to come has the same share of what is left
    allowance = remaining * count / max(count, limit.draws - drawn) - at_random * mean
    if seen.known + drawn + count <= limit.k:
        allowance = math.inf
    values, costs = np.asarray(expected[left], dtype=np.float64), limit.costs[left]
    best = largest_first(values, count - at_random)
    if float(costs[best].sum()) <= allowance:
        return left[best]
    if len(seen.rewards):
        known = np.concatenate([values, seen.rewards])
        k = min(limit.k, len(known))
        threshold = float(-np.partition(-known, k - 1)[k - 1])
        std = float(np.sqrt(np.mean(seen.errors**2))) if len(seen.errors) else float(seen.rewards.std())
        values = expected_improvements(values, threshold, std=max(std, _LEAST_STD * float(values.std())))
    places = best_affordable(values, costs, count=count - at_random, allowance=allowance)
    return left[places]


def expected_improvements(expected: FloatArray, threshold: float, *, std: float) -> Float64Array:
    """Return E[max(0, reward - threshold)] of samples whose rewards are normal around what is expected.

    Args:
        expected: expected rewards, [n].
        threshold: the reward to improve on.
        std: standard deviation of a reward around its expectation; 0 for none.
    """
    above = np.asarray(expected, dtype=np.float64) - threshold
    if std <= 0.0:
        return np.maximum(above, 0.0)
    z = above / std
    return above * ndtr(z) + std * np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)


def best_affordable(values: FloatArray, costs: FloatArray, *, count: int, allowance: float) -> Int64Array:
    """Return the places of `count` samples of large total value that cost at most the allowance together.

    Where no price makes them affordable, those of the highest price tried, hence nearly the cheapest.

    Args:
        values: what each sample is worth, [m].
        costs: what it costs, [m], above 0.
        count: samples to choose, at most m.
        allowance: what they may cost.

    Returns:
        Places [count], the most valuable first; ties go to the lowest place.
    """
    chosen = largest_first(values, count)
    if count and float(costs[chosen].sum()) > allowance:
        # at this price no difference in value outweighs one in cost of a thousandth of the mean
        high = 1e3 * (float(np.ptp(values)) or 1.0) / float(costs.mean())
        low = _LOWEST * high
        chosen = largest_first(values - high * costs, count)
        for _ in range(_HALVINGS):
            price = math.sqrt(low * high)
            tried = largest_first(values - price * costs, count)
            if float(costs[tried].sum()) > allowance:
                low = price
            else:
                high, chosen = price, tried
    return chosen[np.argsort(-values[chosen], kind="stable")]
