"""What a selection missed, estimated from an audit: recall and captured influence with an interval.

The rewards that nobody computed are filled in many times: a Bayesian bootstrap (Rubin, 1981) over the uniform
part of the audit and half a pseudo sample above all others says what share of the unseen lies where, and a
multinomial draw how many samples that is. Each completed pool has a true top k, of which the selection holds
a share. The pseudo sample keeps an audit that saw nothing from claiming that there is nothing.

Where columns of scores take turns in selecting, no completion is known to be right, and two stand at the
ends. One takes the turn at which each sample would be picked as its place in one order, as if every column
missed about the same share of its picks and what loses its turn were lost: that finds too little. The other
repeats the audited samples with all their scores and selects the completed pool by turns: a column's few best
are then too often those that were seen, and it finds too much. The interval goes from the low end of the one
to the high end of the other, and the estimate is the mean of both. (Replayed on a real pool with the 27
subtasks of BBH, each end alone covered the truth in as few as one case of five, and both together in all.)
"""

from dataclasses import dataclass

import numpy as np

from clusterucb_core.records import FloatArray, IntArray

_PSEUDO_SAMPLES = 0.5
_REPLICATES = 1000
_FEWEST_REPLICATES, _SAMPLES_OF_ALL_REPLICATES = 200, 2**24


@dataclass(frozen=True, slots=True)
class Certificate:
    """Estimates of a selection's recall@k and captured influence, with the ends of their intervals.

    `recall` is the share of the pool's true top k that was selected; `captured` the selection's influence
    above chance over that of the true top k, None where no one influence ranks the samples.
    """

    recall: float
    recall_low: float
    recall_high: float
    captured: float | None = None
    captured_low: float | None = None
    captured_high: float | None = None


@dataclass(frozen=True, slots=True)
class SeenByTurns:
    """All computed samples where columns take turns: first those not drawn by chance, then the audited.

    `scores` [m + a, c] are those of m = `known` samples, then of a simple random sample of the `n_left`
    others; `turns` [m + a] the turn at which each is picked, from 0. What is not among the picks may have any
    later turn.
    """

    scores: FloatArray
    turns: IntArray
    known: int
    n_left: int


def certify(
    known: FloatArray,
    audited: FloatArray,
    n_left: int,
    *,
    k: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> Certificate:
    """Return what the k best of all computed rewards are estimated to hold of the pool's true top k.

    Args:
        known: rewards of the samples that were not drawn by chance at the end, [m].
        audited: rewards of a simple random sample of the others, [a].
        n_left: how many others there are, the audited ones included.
        k: samples selected.
        rng: source of all randomness.
        level: of the intervals.

    Raises:
        ValueError: nothing was audited, fewer rewards than k, or n_left below the audited.
    """
    rewards = np.concatenate([known, audited])
    if not 1 <= len(audited) <= n_left or not 1 <= k <= len(rewards):
        raise ValueError(
            f"{len(audited)} audited of {n_left} left and k={k} of {len(rewards)} rewards: a certificate "
            "needs an audit, no larger than what was left, and as many rewards as are selected"
        )
    order = np.argsort(-rewards, kind="stable")
    values = rewards[order]
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    places = places[len(known) :]
    unseen = n_left - len(audited)
    shape = np.concatenate([np.ones(len(audited)), [_PSEUDO_SAMPLES]])
    found = np.empty((_REPLICATES, 2))
    for replicate in range(_REPLICATES):
        counts = rng.multinomial(unseen, rng.dirichlet(shape))
        copies = np.ones(len(values), dtype=np.int64)
        copies[places] += counts[:-1]
        found[replicate] = _measures(values, copies, int(counts[-1]), k)
    low, middle, high = np.quantile(found, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
    if int(places.min()) >= k:  # chance found none of the k best: nothing speaks against there being none
        high = np.ones(2)
    return Certificate(
        recall=float(middle[0]),
        recall_low=float(low[0]),
        recall_high=float(high[0]),
        captured=float(middle[1]),
        captured_low=float(low[1]),
        captured_high=float(high[1]),
    )


def certify_turns(seen: SeenByTurns, *, k: int, rng: np.random.Generator, level: float = 0.95) -> Certificate:
    """Return what the k picks of a round robin are estimated to hold of the round robin over the whole pool.

    The second completion has 1,000 replicates, fewer (down to 200) where more than 16,777 samples were seen.

    Args:
        seen: all computed scores, and the turns that they lead to.
        k: samples selected.
        rng: source of all randomness.
        level: of the interval.

    Returns:
        Recall with its interval; nothing of captured influence.

    Raises:
        ValueError: nothing was audited, fewer samples than k, or n_left below the audited.
    """
    order = -np.minimum(np.asarray(seen.turns, dtype=np.float64), float(k))
    audited = order[seen.known :]
    alike = certify(order[: seen.known], audited, seen.n_left, k=k, rng=rng, level=level)
    repeated = _recall_among_copies(seen, k, rng)
    middle, high = np.quantile(repeated, [0.5, (1 + level) / 2])
    if not (audited > -k).any():  # chance found none of the picks: nothing speaks against there being none
        high = 1.0
    return Certificate(
        recall=(alike.recall + float(middle)) / 2,
        recall_low=alike.recall_low,
        recall_high=max(alike.recall_high, float(high)),
    )


def taken_by_turns(ranked: IntArray, copies: IntArray, k: int) -> IntArray:
    """Return how many copies of each sample k turns take in each of r pools, [r, n].

    `ranked` [c, n] orders the samples of each column, `copies` [r, n] are there of each in each pool.
    """
    left, pools = copies.copy(), np.arange(len(copies))
    places = np.zeros((len(ranked), len(copies)), dtype=np.int64)
    for turn in range(k):
        order, place = ranked[turn % len(ranked)], places[turn % len(ranked)]
        gone = np.flatnonzero(left[pools, order[place]] == 0)
        while len(gone):
            place[gone] += 1
            gone = gone[left[gone, order[place[gone]]] == 0]
        left[pools, order[place]] -= 1
    return copies - left


def _recall_among_copies(seen: SeenByTurns, k: int, rng: np.random.Generator) -> FloatArray:
    """Return the recall of the picks in pools that copies of the audited samples complete, [replicates]."""
    n, audited = len(seen.scores), len(seen.scores) - seen.known
    replicates = min(_REPLICATES, max(_FEWEST_REPLICATES, _SAMPLES_OF_ALL_REPLICATES // n))
    weights = rng.dirichlet(np.ones(audited), size=replicates)
    copies = np.ones((replicates, n), dtype=np.int32)
    copies[:, seen.known :] += rng.multinomial(seen.n_left - audited, weights).astype(np.int32)
    picked = np.flatnonzero(np.asarray(seen.turns) < k)
    ranked = np.argsort(-seen.scores, axis=0, kind="stable").T
    return np.count_nonzero(taken_by_turns(ranked, copies, k)[:, picked], axis=1) / k


def _measures(values: FloatArray, copies: IntArray, above: int, k: int) -> tuple[float, float]:
    """Return recall and captured influence in a completed pool.

    `values` [m] descend, with so many samples at each; `above` more samples are at least as good as the best.
    """
    ranks = above + np.cumsum(copies)
    recall = np.count_nonzero(ranks <= k) / k
    if recall == 1.0:
        return 1.0, 1.0
    taken = np.clip(k - (ranks - copies), 0, copies)
    best = float(taken @ values) + min(above, k) * float(values[0])
    mean = (float(copies @ values) + above * float(values[0])) / float(ranks[-1])
    spread = best - k * mean
    captured = (float(values[:k].sum()) - k * mean) / spread if spread > 0.0 else 1.0
    return recall, captured
