"""What a selection missed, estimated from an audit: recall and captured influence with an interval.

The rewards that nobody computed are filled in many times: a Bayesian bootstrap (Rubin, 1981) over the uniform
part of the audit and half a pseudo sample above all others says what share of the unseen lies where, and a
multinomial draw how many samples that is. Each completed pool has a true top k, of which the selection holds
a share. The pseudo sample keeps an audit that saw nothing from claiming that there is nothing.

Where samples are selected by turns, what counts is the turn at which each would be picked: one order of all
that was seen, in which the unseen take places as the audit has them. Columns are taken to miss about the same
share of their picks; where one column misses far more than the others, fewer picks are lost than estimated.
"""

from dataclasses import dataclass, replace

import numpy as np

from clusterucb_core.records import FloatArray, IntArray

_PSEUDO_SAMPLES = 0.5
_REPLICATES = 1000


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


def certify_turns(
    turns: IntArray, *, known: int, n_left: int, k: int, rng: np.random.Generator, level: float = 0.95
) -> Certificate:
    """Return what the k picks of a round robin are estimated to hold of the round robin over the whole pool.

    Args:
        turns: turn at which each computed sample is picked, from 0, [m + a]: first of the m samples that were
            not drawn by chance at the end, then of a simple random sample of the others. What is not among
            the first k picks may have any turn from k on.
        known: m.
        n_left: how many others there are, the a audited ones included.
        k: samples selected.
        rng: source of all randomness.
        level: of the intervals.

    Returns:
        Recall with its interval; nothing of captured influence.

    Raises:
        ValueError: nothing was audited, fewer samples than k, or n_left below the audited.
    """
    order = -np.minimum(np.asarray(turns, dtype=np.float64), float(k))
    found = certify(order[:known], order[known:], n_left, k=k, rng=rng, level=level)
    return replace(found, captured=None, captured_low=None, captured_high=None)


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
