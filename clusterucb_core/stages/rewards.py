"""What a bandit sees of a sample's scores on a target's subtasks: the rewards that its draws go by.

Under the maximum these are the scores themselves, of which the largest counts. Where subtasks take turns in
selecting, each needs samples of its own, however high or wide its scores are beside the others': each column
is put on a common scale, its mean and standard deviation over the pool as the first scores and the prior tell
them. The draws then go by the largest of these, and the selection by turns. (Replayed on a real pool with the
27 subtasks of BBH, a tenth drawn by linucb holds 0.72 of the true round robin on the common scale, 0.67
without one, 0.61 on the scale of the prior alone.)
"""

from dataclasses import dataclass

import numpy as np

from clusterucb_core.influence import Aggregate, aggregate_scores, takes_turns
from clusterucb_core.records import FloatArray, IntArray

# Fewer first scores, as in rounds of one draw, say less of a spread than the prior does.
FEWEST_SCORES = 16


@dataclass(frozen=True)
class CommonScale:
    """Mean and standard deviation [s] of each column of scores over the pool."""

    mean: FloatArray
    std: FloatArray


@dataclass
class RewardView:
    """What turns scores into rewards; `scale` is set by the first scores and stands from then on.

    `prior` [n, s] is there where columns take turns.
    """

    aggregate: Aggregate
    prior: FloatArray | None
    scale: CommonScale | None = None


def rewards_of(view: RewardView, rows: IntArray, scores: FloatArray) -> FloatArray:
    """Return the rewards of samples [m, s], or [m, 1] for the mean, of which the largest counts.

    Args:
        view: what the selection goes by.
        rows: the samples, [m].
        scores: their scores on the subtasks, [m, s].
    """
    if takes_turns(view.aggregate):
        assert view.prior is not None, "columns that take turns have a prior"
        view.scale = view.scale or common_scale(scores, rows, view.prior)
        return _on_scale(scores, view.scale)
    # the largest score counts either way, but a policy may model each subtask by itself
    return scores if view.aggregate == "max" else aggregate_scores(scores, "mean")[:, None]


def guesses_of(prior: FloatArray, aggregate: Aggregate) -> FloatArray:
    """Return the guess of every reward that a prior of scores [n, s] gives: [n, s], [n, 1] for the mean."""
    if takes_turns(aggregate):
        return _on_scale(prior, _scale_of(prior))
    return prior if aggregate == "max" else aggregate_scores(prior, "mean")[:, None]


def common_scale(scores: FloatArray, rows: IntArray, prior: FloatArray) -> CommonScale:
    """Return the scale of every column from the scores of some samples and a prior of all.

    The scores are regressed on their prior, column by column: so samples that were chosen by their prior give
    the mean and spread of the whole pool. Fewer than `FEWEST_SCORES` give the scale of the prior itself.

    Args:
        scores: scores of the samples, [m, s].
        rows: the samples, [m].
        prior: a guess of the score of every sample, [n, s].
    """
    whole = _scale_of(prior)
    if len(rows) < FEWEST_SCORES:
        return whole
    guesses = prior[rows] - prior[rows].mean(axis=0)
    offsets = scores - scores.mean(axis=0)
    power = (guesses * guesses).sum(axis=0)
    slopes = (guesses * offsets).sum(axis=0) / np.where(power > 0.0, power, 1.0)
    rest = offsets - slopes * guesses
    variance = (slopes * whole.std) ** 2 + (rest * rest).sum(axis=0) / (len(rows) - 2)
    mean = scores.mean(axis=0) + slopes * (whole.mean - prior[rows].mean(axis=0))
    return CommonScale(mean, np.sqrt(np.where(variance > 0.0, variance, 1.0)))


def _scale_of(prior: FloatArray) -> CommonScale:
    std = prior.std(axis=0)
    return CommonScale(prior.mean(axis=0), np.where(std > 0.0, std, 1.0))


def _on_scale(scores: FloatArray, scale: CommonScale) -> FloatArray:
    return (scores - scale.mean) / scale.std
