"""The selection against its baselines on the same test rows, and what random selections come to together.

Reads the artifacts `evaluation`. A metric is compared where it is a mean over rows: the test loss,
accuracies, exact matches, `pass@1`, and the logarithm of a perplexity. Against one baseline the interval is
over rows; against random selections of two seeds or more it is over rows and seeds (`evaluation.intervals`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from clusterucb_core.errors import StaleArtifact
from clusterucb_core.evaluation import RowScores, crossed_mean, paired_difference, seed_mean, within_share
from clusterucb_core.records import ArtifactRef, FloatArray
from clusterucb_core.stages.evaluation import read_losses, read_scores
from clusterucb_core.store import ComparisonRow, EvaluationRow

SELECTION = "selection"
RANDOM = "random"
LOGARITHM = "log_"

_Scores = dict[tuple[str, str], RowScores]


def compare_with_baselines(
    evaluations: Mapping[str, ArtifactRef], *, target: str, version: int, run_id: str
) -> list[ComparisonRow]:
    """Return the differences of the selection to each baseline, and to all random ones together.

    Args:
        evaluations: that of each subject by its name, `selection` and baselines.
        target: name of the target that the test rows are of.
        version: of the selection.
        run_id: the run that evaluated.

    Returns:
        None where the selection or every baseline is missing.
    """
    scores = {subject: _scores(ref, target) for subject, ref in evaluations.items()}
    own = scores.pop(SELECTION, {})
    compared: dict[str, list[_Scores]] = {subject: [found] for subject, found in scores.items()}
    chance = _random_ones(scores)
    if len(chance) > 1:
        compared[RANDOM] = chance
    return [
        ComparisonRow(
            selection_version=version,
            run_id=run_id,
            target=target,
            baseline=baseline,
            task=task,
            metric=metric,
            difference=difference,
            low=_known(low),
            high=_known(high),
            higher_is_better=mine.higher_is_better,
            n=len(mine.rows),
            n_seeds=len(theirs),
        )
        for baseline, theirs in compared.items()
        for (task, metric), mine in own.items()
        if all((task, metric) in item for item in theirs)
        for difference, low, high in [_difference(mine, [item[task, metric] for item in theirs])]
    ]


def random_means(
    evaluations: Mapping[str, ArtifactRef], measures: Sequence[EvaluationRow], *, target: str, run_id: str
) -> list[EvaluationRow]:
    """Return what random selections come to together, as the subject `random`; nothing for a single seed.

    A perplexity is the exponential of the mean logarithm.

    Args:
        evaluations: that of each subject by its name.
        measures: of single subjects without rows, such as recall: their interval is over seeds.
        target: name of the target.
        run_id: the run that evaluated.
    """
    chance = _random_ones({subject: _scores(ref, target) for subject, ref in evaluations.items()})
    if len(chance) < 2:
        return []
    means = [*_row_means(chance), *_measure_means(measures, len(chance))]
    return [
        EvaluationRow(None, run_id, RANDOM, task, metric, value, _known(low), _known(high), n, target)
        for task, metric, (value, low, high), n in means
    ]


def _row_means(chance: Sequence[_Scores]) -> Iterator[tuple[str, str, tuple[float, float, float], int]]:
    for (task, metric), first in chance[0].items():
        if not all((task, metric) in item for item in chance):
            continue
        mean, low, high = crossed_mean(_table([item[task, metric] for item in chance]))
        name = metric.removeprefix(LOGARITHM)
        if name != metric:
            mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
        yield task, name, (mean, *within_share(name, low, high)), len(first.rows)


def _measure_means(
    measures: Sequence[EvaluationRow], n_seeds: int
) -> Iterator[tuple[str, str, tuple[float, float, float], int]]:
    of_random = [row for row in measures if row.subject.startswith(f"{RANDOM}:")]
    for task, metric in dict.fromkeys((row.task, row.metric) for row in of_random):
        found = [row for row in of_random if (row.task, row.metric) == (task, metric)]
        if len(found) == n_seeds:
            yield task, metric, seed_mean(np.array([row.value for row in found])), found[0].n


def _difference(mine: RowScores, theirs: Sequence[RowScores]) -> tuple[float, float, float]:
    table = _table([mine, *theirs])
    if len(theirs) == 1:
        return paired_difference(table[0], table[1], seed=0)
    return crossed_mean(table[0] - table[1:])


def _table(scores: Sequence[RowScores]) -> FloatArray:
    """Return the values [s, r] of subjects on the same rows.

    Raises:
        StaleArtifact: they are not of the same rows.
    """
    first = scores[0]
    if any(not np.array_equal(item.rows, first.rows) for item in scores):
        raise StaleArtifact(
            f"{first.task}, {first.metric}: subjects were evaluated on different rows "
            f"({', '.join(str(len(item.rows)) for item in scores)}); remove their evaluations and run again"
        )
    return np.stack([item.values for item in scores])


def _scores(ref: ArtifactRef, target: str) -> _Scores:
    losses = read_losses(ref)
    loss = RowScores(target, "loss", np.arange(len(losses)), losses, higher_is_better=False)
    return {(item.task, item.metric): item for item in [*([loss] if len(losses) else []), *read_scores(ref)]}


def _random_ones(scores: Mapping[str, _Scores]) -> list[_Scores]:
    return [found for subject, found in scores.items() if subject.startswith(f"{RANDOM}:")]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
