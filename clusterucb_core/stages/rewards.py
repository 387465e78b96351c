"""What a bandit sees of a sample's scores on a target's subtasks: the rewards that its draws go by.

Under the maximum these are the scores themselves, of which the largest counts. Where subtasks take turns in
selecting, each needs samples of its own, however high or wide its scores are beside the others': each column
is put on a common scale first, by the mean and standard deviation of its prior over the pool. The draws then
go by the largest of these, and the selection by turns.
"""

from dataclasses import dataclass

import numpy as np

from clusterucb_core.influence import Aggregate, aggregate_scores, takes_turns
from clusterucb_core.records import FloatArray


@dataclass(frozen=True)
class CommonScale:
    """Mean and standard deviation [s] of each column of scores, as far as a prior tells them."""

    mean: FloatArray
    std: FloatArray


def common_scale(prior: FloatArray) -> CommonScale:
    """Return the scale of the columns of a prior [n, s]; a column without spread is left as wide as it is."""
    std = prior.std(axis=0)
    return CommonScale(prior.mean(axis=0), np.where(std > 0.0, std, 1.0))


def rewards_of(scores: FloatArray, aggregate: Aggregate, scale: CommonScale | None) -> FloatArray:
    """Return the rewards of samples [m, s], or [m, 1] for the mean, of which the largest counts.

    Args:
        scores: scores of the samples, or a prior of them, [m, s].
        aggregate: what the selection goes by.
        scale: of the columns, where they take turns.
    """
    if takes_turns(aggregate):
        assert scale is not None, "columns that take turns have a common scale"
        return (scores - scale.mean) / scale.std
    # the largest score counts either way, but a policy may model each subtask by itself
    return scores if aggregate == "max" else aggregate_scores(scores, "mean")[:, None]
