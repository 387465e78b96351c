"""Draws in their order, summed up: the running k-th best reward, and parts of equal length."""

import heapq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from clusterucb_core.records import FloatArray, IntArray

BINS = 20


@dataclass(frozen=True)
class DrawBin:
    """A part of the draws, from the step `first` to the step `last`: how they were chosen, promised and gave.

    `by_bound` of its `n` draws had a finite bound; `by_chance` are all others: the cold start, draws at
    random and the audit. Means are over what is known, None where nothing is.
    """

    first: int
    last: int
    n: int
    by_bound: int
    by_chance: int
    mean_bound: float | None
    mean_arm: float | None
    mean_reward: float | None
    kth_best: float | None


def draw_bins(pulls: pl.DataFrame, k: int) -> tuple[DrawBin, ...]:
    """Sum up the draws in at most 20 parts, each of as many as the others to within one.

    Args:
        pulls: the columns of the table `pulls` in drawing order; those known before are no draws.
        k: samples selected.
    """
    steps, levels = running_kth_best(pulls, k)
    drawn = pulls.filter(pl.col("kind") != "known")
    if drawn.is_empty():
        return ()
    edges = np.linspace(0, len(drawn), min(BINS, len(drawn)) + 1).astype(int)
    return tuple(_bin(drawn.slice(start, stop - start), steps, levels) for start, stop in pairwise(edges))


def thinned_rewards(pulls: pl.DataFrame, *, most: int) -> pl.DataFrame:
    """Return the pulls whose reward is known, or evenly so many of them that at most `most` are left."""
    rewarded = pulls.filter(pl.col("reward").is_not_null())
    return rewarded.gather_every(max(1, -(-len(rewarded) // most)))


def running_kth_best(pulls: pl.DataFrame, k: int) -> tuple[IntArray, FloatArray]:
    """Return the steps [m] from which on k rewards are known, and the k-th best reward [m] at each."""
    best: list[float] = []
    steps: list[int] = []
    levels: list[float] = []
    for step, reward in pulls.select("step", "reward").drop_nulls().iter_rows():
        if len(best) < k:
            heapq.heappush(best, reward)
        else:
            heapq.heappushpop(best, reward)
        if len(best) == k:
            steps.append(step)
            levels.append(best[0])
    return np.array(steps, dtype=np.int64), np.array(levels, dtype=np.float64)


def _bin(part: pl.DataFrame, steps: IntArray, levels: FloatArray) -> DrawBin:
    first, last = int(part["step"][0]), int(part["step"][-1])
    bounded = part.filter(pl.col("bound").is_finite())
    place = int(np.searchsorted(steps, last, side="right")) - 1
    return DrawBin(
        first=first,
        last=last,
        n=len(part),
        by_bound=len(bounded),
        by_chance=len(part) - len(bounded),
        mean_bound=_mean(bounded["bound"]),
        mean_arm=_mean(bounded["arm_mean"]),
        mean_reward=_mean(part["reward"]),
        kth_best=float(levels[place]) if place >= 0 else None,
    )


def _mean(values: pl.Series) -> float | None:
    known = values.drop_nulls()
    return float(known.mean()) if len(known) else None  # pyright: ignore[reportArgumentType]
