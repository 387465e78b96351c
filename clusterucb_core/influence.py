"""Influence of pool samples on a target, the selection of k of them, and the measures that judge a selection.

Influence of sample z: the largest, over the target's subtasks, of the mean over the subtask's validation rows
v of <phi(z), gamma(v)> (LESS, arXiv 2402.04333). Subtasks may also take turns in selecting (arXiv 2503.01807
and 2602.14696 report that to do better than the maximum): they are then the columns of a score matrix, and a
sample's influence is its score in the column that took it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from clusterucb_core.records import FloatArray, IntArray

Aggregate = Literal["max", "mean", "round_robin", "round_robin_validation"]
NO_COLUMN = -1

# 32 MiB of float64 per block of features.
_BLOCK_VALUES = 2**22


@dataclass(frozen=True, slots=True)
class Choice:
    """The selected samples [k] in rank order, the influence [k] of each, and the column [k] of that score.

    `columns` holds `NO_COLUMN` where the influence is a mean over columns.
    """

    rows: IntArray
    influence: FloatArray
    columns: IntArray


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a selection holds of what full gradients would have selected."""

    captured_influence: float
    recall: float


def influence_scores(
    features: FloatArray, target_features: FloatArray, *, subtask: IntArray, aggregate: Aggregate = "max"
) -> FloatArray:
    """Return the influence of every sample on a target.

    Args:
        features: one unit row per sample, [n, d].
        target_features: one unit row per validation row, [v, d].
        subtask: index of each validation row's subtask, [v], every index of 0..s-1 at least once.
        aggregate: `max` (the paper's) or `mean` over subtasks.

    Returns:
        float64 [n].

    Raises:
        ValueError: as `subtask_scores`, or an unknown aggregate.
    """
    return aggregate_scores(subtask_scores(features, target_features, subtask), aggregate)


def subtask_scores(features: FloatArray, target_features: FloatArray, subtask: IntArray) -> FloatArray:
    """Return the mean inner product of every sample with the validation rows of every subtask.

    The mean is taken over the target features first, which the inner product allows, so that the cost is
    n x s x d. Features are read in blocks: the memory taken beside the result does not grow with n.

    Args:
        features: one unit row per sample, [n, d], any float type; a memory map is fine.
        target_features: one unit row per validation row, [v, d].
        subtask: index of each validation row's subtask, [v], every index of 0..s-1 at least once.

    Returns:
        float64 [n, s].

    Raises:
        ValueError: shapes that do not fit, a subtask without validation rows, or a score that is not finite.
    """
    _check_shapes(features, target_features, subtask)
    means = _subtask_means(target_features, subtask)
    scores = np.empty((len(features), len(means)))
    rows = max(1, _BLOCK_VALUES // max(1, features.shape[1]))
    for start in range(0, len(features), rows):
        block = np.asarray(features[start : start + rows], dtype=np.float64)
        scores[start : start + rows] = block @ means.T
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(broken):
        raise ValueError(
            f"the features of sample {broken[0]} hold NaN or infinity ({len(broken)} samples in all); "
            "exclude them first"
        )
    return scores


def takes_turns(aggregate: Aggregate) -> bool:
    """Tell whether columns take turns in selecting, so that no one number ranks a sample."""
    return aggregate in ("round_robin", "round_robin_validation")


def aggregate_scores(scores: FloatArray, aggregate: Aggregate) -> FloatArray:
    """Return one score per sample [n] from scores per subtask [n, s]: their maximum or their mean.

    Raises:
        ValueError: an unknown aggregate, or one that takes turns.
    """
    match aggregate:
        case "max":
            return scores.max(axis=1)
        case "mean":
            return scores.mean(axis=1)
        case "round_robin" | "round_robin_validation":
            raise ValueError(
                f"aggregate={aggregate!r} selects by turns and gives a sample no one score; use select_top, "
                "or the aggregates max and mean"
            )
        case _:  # callers in plain Python can pass any string
            raise ValueError(f"aggregate={aggregate!r} is unknown; known: {', '.join(get_args(Aggregate))}")


def select_top(scores: FloatArray, k: int, *, aggregate: Aggregate) -> Choice:
    """Return the k samples that an aggregate puts first, by what each of them counts.

    Args:
        scores: score of every sample in every column, [n, c]; columns are subtasks, or validation rows.
        k: samples to select.
        aggregate: `max` and `mean` take the k largest; the others let the columns take turns.

    Raises:
        ValueError: k is not in 0..n, a score is NaN, or the aggregate is unknown.
    """
    if takes_turns(aggregate):
        rows = round_robin_top_k(scores, k)
        columns = np.arange(k) % scores.shape[1]
        return Choice(rows, scores[rows, columns], columns)
    influence = aggregate_scores(scores, aggregate)
    rows = top_k(influence, k)
    columns = scores[rows].argmax(axis=1) if aggregate == "max" else np.full(k, NO_COLUMN)
    return Choice(rows, influence[rows], columns)


def round_robin_top_k(scores: FloatArray, k: int) -> IntArray:
    """Return k samples in the order in which the columns, 0 to c-1 and again, pick them.

    Each takes the sample with its best score among those that are not yet taken; ties go to the lowest index.
    Where c does not divide k, the first k mod c columns have one turn more.

    Args:
        scores: score of every sample in every column, [n, c].
        k: samples to pick.

    Raises:
        ValueError: k is not in 0..n, or a score is NaN.
    """
    n, c = scores.shape
    # at most k - 1 samples are taken before any turn, so that a column looks no further than its k best
    ranked = [top_k(scores[:, column], k).data for column in range(c)]
    places, taken = [0] * c, bytearray(n)
    picked: list[int] = []
    for turn in range(k):
        column = turn % c
        while taken[ranked[column][places[column]]]:
            places[column] += 1
        sample = ranked[column][places[column]]
        taken[sample] = 1
        picked.append(sample)
    return np.array(picked, dtype=np.int64)


def turns_of_columns(k: int, columns: int) -> IntArray:
    """Return how many of k turns each column has, [c]."""
    return k // columns + (np.arange(columns) < k % columns)


def top_k(scores: FloatArray, k: int) -> IntArray:
    """Return the indices of the k largest scores, best first; ties go to the lowest index.

    Raises:
        ValueError: k is not in 0..n, or a score is NaN.
    """
    if not 0 <= k <= len(scores):
        raise ValueError(f"k={k} must lie in 0..{len(scores)}, the number of scores")
    if np.isnan(scores).any():
        raise ValueError(f"the score of sample {int(np.argmax(np.isnan(scores)))} is NaN; exclude it first")
    # of a large pool only what can be among the k best is put in order
    last = np.partition(scores, len(scores) - k)[len(scores) - k] if 0 < k < len(scores) else -np.inf
    candidates = np.flatnonzero(scores >= last)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def judge(scores_all: FloatArray, selected: IntArray, *, aggregate: Aggregate) -> Judgement:
    """Return captured influence and recall of a selection of k samples under an aggregate.

    Args:
        scores_all: scores of all n samples under full gradients, [n, c].
        selected: [k] distinct sample indices.
        aggregate: how the selection was made.

    Raises:
        ValueError: `selected` is not k distinct indices of the pool, or the aggregate is unknown.
    """
    k = len(selected)
    if takes_turns(aggregate):
        return Judgement(captured_by_turns(scores_all, selected, k), recall_by_turns(scores_all, selected, k))
    influence = aggregate_scores(scores_all, aggregate)
    return Judgement(captured_influence(influence, selected, k), recall_at_k(influence, selected, k))


def captured_influence(influence_all: FloatArray, selected: IntArray, k: int) -> float:
    """Return how much of the influence above chance a selection holds, against the true top k.

    (sum over the selected - k x pool mean) / (sum over the true top k - k x pool mean): 1 for the true top k,
    about 0 for a random selection. 1 where all samples are equal, since then nothing can be missed.

    Args:
        influence_all: influence of all n samples under full gradients.
        selected: [k] distinct sample indices.
        k: size of the selection.

    Raises:
        ValueError: `selected` is not k distinct indices of the pool.
    """
    _check_selected(selected, k, len(influence_all))
    values = np.asarray(influence_all, dtype=np.float64)
    chance = k * float(values.mean())
    reachable = float(values[top_k(values, k)].sum()) - chance
    if np.ptp(values) == 0.0 or k == len(values):
        return 1.0
    return (float(values[np.asarray(selected)].sum()) - chance) / reachable


def recall_at_k(influence_all: FloatArray, selected: IntArray, k: int) -> float:
    """Return the share of the true top k that was selected.

    Samples that tie for the last places of the top k are worth the same, so any of them fills such a place:
    the result does not depend on the order of the pool.

    Args:
        influence_all: influence of all n samples under full gradients.
        selected: [k] distinct sample indices.
        k: size of the selection.

    Raises:
        ValueError: `selected` is not k distinct indices of the pool.
    """
    _check_selected(selected, k, len(influence_all))
    values = np.asarray(influence_all)
    picked = values[np.asarray(selected)]
    last = values[top_k(values, k)[-1]]
    places = k - np.count_nonzero(values > last)
    tied = min(np.count_nonzero(picked == last), places)
    return int(np.count_nonzero(picked > last) + tied) / k


def captured_by_turns(scores_all: FloatArray, selected: IntArray, k: int) -> float:
    """Return how much of the influence above chance a selection holds for the columns that take turns.

    A column with q turns counts the q best of the selected in it against its q best of the pool, both less
    q x its mean; the result is the mean over the columns that have a turn. 1 for the true round robin, since
    that holds the q best of every column. A random selection has more than 0: a column counts its best ones.

    Args:
        scores_all: scores of all n samples under full gradients, [n, c].
        selected: [k] distinct sample indices.
        k: size of the selection.

    Raises:
        ValueError: `selected` is not k distinct indices of the pool.
    """
    _check_selected(selected, k, len(scores_all))
    values = np.asarray(scores_all, dtype=np.float64)
    shares: list[float] = []
    for column, turns in enumerate(turns_of_columns(k, values.shape[1]).tolist()):
        if turns == 0:
            continue
        every, picked = values[:, column], values[np.asarray(selected), column]
        chance = turns * float(every.mean())
        reachable = float(every[top_k(every, turns)].sum()) - chance
        held = float(picked[top_k(picked, turns)].sum()) - chance
        shares.append(held / reachable if np.ptp(every) > 0.0 and turns < len(every) else 1.0)
    return float(np.mean(shares))


def recall_by_turns(scores_all: FloatArray, selected: IntArray, k: int) -> float:
    """Return the share of the true round robin that was selected.

    Args:
        scores_all: scores of all n samples under full gradients, [n, c].
        selected: [k] distinct sample indices.
        k: size of the selection.

    Raises:
        ValueError: `selected` is not k distinct indices of the pool.
    """
    _check_selected(selected, k, len(scores_all))
    return len(np.intersect1d(round_robin_top_k(scores_all, k), selected)) / k


def _check_shapes(features: FloatArray, target_features: FloatArray, subtask: IntArray) -> None:
    if features.ndim != 2 or target_features.ndim != 2 or features.shape[1] != target_features.shape[1]:
        raise ValueError(
            f"features {features.shape} and target features {target_features.shape} "
            "must be [n, d] and [v, d] with the same d"
        )
    if np.shape(subtask) != (len(target_features),):
        raise ValueError(
            f"subtask has shape {np.shape(subtask)}; one index per {len(target_features)} rows is needed"
        )


def _subtask_means(target_features: FloatArray, subtask: IntArray) -> NDArray[np.float64]:
    indices = np.asarray(subtask)
    if not len(indices):
        raise ValueError("the target has no validation rows; at least one is needed")
    if indices.dtype.kind not in "iu" or indices.min() < 0:
        raise ValueError(f"subtask must hold int indices from 0, not {indices.dtype} from {indices.min()}")
    counts = np.bincount(indices)
    if (counts == 0).any():
        raise ValueError(
            f"subtask {int(np.argmin(counts))} of 0..{len(counts) - 1} has no validation rows; "
            "number the subtasks without gaps"
        )
    rows = np.asarray(target_features, dtype=np.float64)
    if not np.isfinite(rows).all():
        bad = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise ValueError(f"the features of validation row {bad} hold NaN or infinity")
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, indices, rows)
    return sums / counts[:, None]


def _check_selected(selected: IntArray, k: int, n: int) -> None:
    indices = np.asarray(selected)
    distinct = len(np.unique(indices))
    if k < 1 or indices.shape != (k,) or distinct != k:
        raise ValueError(
            f"{distinct} distinct of {indices.size} selected samples; k={k} distinct ones are needed"
        )
    if indices.min() < 0 or indices.max() >= n:
        raise ValueError(f"selected samples {indices.min()}..{indices.max()} must lie in 0..{n - 1}")
