"""Does a target tell the samples of a pool apart better than its own words in another order would?

Every validation row stands beside shuffles of its own words, and what counts is how its ranking of the pool
differs from theirs. Rows that hold something in common differ from their shuffles in one direction, so that
one half of them agrees with the other half about the pool (the sum over pairs of rows is the mean over all
halves); rows of shuffled words differ by chance. Where a target is no better than its shuffles, any of the
texts of a row could be the row itself: taking one at random for each row, many times, gives the distribution
under chance (a permutation test, exact for independent rows).
"""

import math
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from clusterucb_core.records import FloatArray, IntArray

FEWEST_ROWS = 4
# Above this p-value a target is said not to separate the pool. Few rows have more shuffles, so that there are
# enough ways to take one text of each for the level to be reached.
LEVEL = 0.005
_SHUFFLES, _FEWEST_WAYS = 4, 2000
_REPLICATES = 9_999
_BLOCK_REPLICATES = 1_000


@dataclass(frozen=True, slots=True)
class Separation:
    """How well a target separates a pool.

    `p` is how often chance does as well. `agreement`, at most 1, is the mean correlation between two rows of
    that by which a row's ranking differs from its shuffles'. It rests on `rows` with `shuffles` of each.
    """

    p: float
    agreement: float
    rows: int
    shuffles: int


def chance_warning(p: float) -> str | None:
    """Return what a p-value says against a target, and what to do; None where it separates the pool."""
    if p <= LEVEL:
        return None
    return (
        f"it does not rank the pool better than its own words in another order would (p = {p:.2g}, above "
        f"{LEVEL}), so the selection may be no better than one for shuffled text; see whether its validation "
        "rows are whole and in a language of the model, and give more of them"
    )


def shuffles_per_row(n_rows: int) -> int:
    """Return how many shuffles each of a target's rows stands beside: four, or more where rows are few."""
    return max(_SHUFFLES, math.ceil(_FEWEST_WAYS ** (1 / max(1, n_rows)) - 1 - 1e-9))


def separation(scores: FloatArray, subtask: IntArray, *, rng: np.random.Generator) -> Separation:
    """Return how much better than its shuffles a target's rows agree about a pool.

    Args:
        scores: [v, 1 + m, n]: for each of v rows the scores of n pool samples, first of the row itself, then
            of its m shuffles. Only their ranks count.
        subtask: index of each row's subtask, [v]. Two rows of one subtask count in full, two of different
            ones by 1 / subtasks: what a subtask has of its own and what all share weigh about the same.
        rng: source of all randomness.

    Raises:
        ValueError: another shape, fewer than `FEWEST_ROWS` rows, or scores that are not finite.
    """
    _check(scores, subtask)
    v, texts, _ = scores.shape
    pairs = _pair_weights(np.asarray(subtask))
    own = np.arange(v) * texts
    with threadpool_limits(limits=1, user_api="blas"):  # how a product is divided moves its last bits
        products = _products(scores)
        spread = float(np.diag(products)[own].mean())
        products = products * np.kron(pairs, np.ones((texts, texts)))
        found = float(_agreement(products, own[None])[0])
        reached = 0
        for start in range(0, _REPLICATES, _BLOCK_REPLICATES):
            count = min(_BLOCK_REPLICATES, _REPLICATES - start)
            at_random = own + rng.integers(texts, size=(count, v))
            # what differs by rounding is as good: of few rows, chance often names the rows themselves
            reached += int(np.count_nonzero(_agreement(products, at_random) >= found - 1e-9 * abs(found)))
    agreement = found / float(pairs.sum()) / spread if spread > 0.0 else 0.0
    return Separation((1 + reached) / (1 + _REPLICATES), agreement, v, texts - 1)


def _check(scores: FloatArray, subtask: IntArray) -> None:
    if scores.ndim != 3 or len(scores) < FEWEST_ROWS or scores.shape[1] < 2 or scores.shape[2] < 2:
        raise ValueError(
            f"scores of shape {scores.shape} must be [rows, 1 + shuffles, samples] with at least "
            f"{FEWEST_ROWS} rows, one shuffle and two samples"
        )
    if np.shape(subtask) != (len(scores),):
        raise ValueError(f"subtask has shape {np.shape(subtask)}; one index for {len(scores)} rows is needed")
    if not np.isfinite(scores).all():
        raise ValueError("the scores hold NaN or infinity; leave such samples out")


def _pair_weights(subtask: IntArray) -> FloatArray:
    """Return what each pair of rows counts [v, v], a row with itself nothing."""
    same = subtask[:, None] == subtask[None, :]
    weights = np.where(same, 1.0, 1.0 / len(np.unique(subtask)))
    np.fill_diagonal(weights, 0.0)
    return weights


def _products(scores: FloatArray) -> FloatArray:
    """Return the inner products [vt, vt] of all texts' rankings, less the mean ranking of the row's texts."""
    # two seconds of import, which `show` would wait for to say whether a p-value is a warning
    from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs]

    v, texts, n = scores.shape
    ranks = np.asarray(rankdata(scores, axis=2), dtype=np.float64) - (n + 1) / 2
    norms = np.linalg.norm(ranks, axis=2, keepdims=True)
    ranks /= np.where(norms > 0.0, norms, 1.0)
    offsets = (ranks - ranks.mean(axis=1, keepdims=True)).reshape(v * texts, n)
    return offsets @ offsets.T


def _agreement(products: FloatArray, chosen: IntArray) -> FloatArray:
    """Return the weighted sum of products over all pairs of rows, for each choice of texts [r, v]."""
    of_choice = np.zeros((len(chosen), len(products)))
    np.put_along_axis(of_choice, chosen, 1.0, axis=1)
    return ((of_choice @ products) * of_choice).sum(axis=1)
