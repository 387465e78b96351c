"""Turns the report of an lm-eval run into results with intervals, and into the scores of single rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clusterucb_core.records import EvalResult, FloatArray, IntArray

_NORMAL_95 = 1.96
_SHARES = ("acc", "exact_match", "f1", "em", "pass@")


@dataclass(frozen=True, slots=True)
class RowScores:
    """What each row of a task contributes to a metric that is their mean: values [n] of the rows [n]."""

    task: str
    metric: str
    rows: IntArray
    values: FloatArray
    higher_is_better: bool | None


def report_results(report: dict[str, Any], subject: str) -> Iterator[EvalResult]:
    """Give one result for each metric of each task and group of a report.

    A share of rows that are each right or wrong has the interval of Wilson (1927), which has a width where
    all are wrong, too. Otherwise it is the value plus and minus 1.96 standard errors, cut to 0..1 for shares
    such as accuracy. Where lm-eval knows no standard error, as with a single row, it is 0..1 for shares and
    NaN for the rest. A perplexity has the exponential of the interval of its logarithm, see `row_scores`.

    Args:
        report: what `lm_eval.evaluator.evaluate` returns; without samples there are standard errors alone.
        subject: what was evaluated.
    """
    counts = {task: count["effective"] for task, count in report["n-samples"].items()}
    scores = {(item.task, item.metric): item.values for item in row_scores(report)}
    for task, values in report["results"].items():
        for (name, kept_by), metric in _metric_names(values).items():
            value = float(values[f"{name},{kept_by}"])
            low, high = _interval(name, value, values.get(f"{name}_stderr,{kept_by}"))
            rows, logarithm = scores.get((task, metric)), scores.get((task, f"log_{metric}"))
            if logarithm is not None:
                low, high = _exponential_interval(logarithm)
            elif rows is not None and name.startswith(_SHARES) and np.isin(rows, (0.0, 1.0)).all():
                low, high = _wilson_interval(value, len(rows))
            yield EvalResult(subject, task, metric, value, low, high, _count(task, report, counts))


def row_scores(report: dict[str, Any]) -> Iterator[RowScores]:
    """Give the scores of the rows for each metric of a task that is a mean over rows.

    A perplexity weighs rows by their tokens (or words, or bytes): exp(L) with L = sum_i l_i / sum_i w_i, for
    the negative log-likelihood l_i and the weight w_i of row i. Its logarithm L is given as `log_perplexity`,
    with the linearised values z_i = L + (l_i - w_i L) / mean(w), whose mean is L and whose standard error is
    that of the ratio (Cochran, Sampling Techniques, 3rd edition, section 2.11).

    Args:
        report: what `lm_eval.evaluator.evaluate` returns, samples included.
    """
    for task, samples in report.get("samples", {}).items():
        better: dict[str, bool | None] = report["higher_is_better"].get(task, {})
        for (name, kept_by), metric in _metric_names(report["results"][task]).items():
            kept = [sample for sample in samples if sample["filter"] == kept_by and name in sample]
            value = float(report["results"][task][f"{name},{kept_by}"])
            rows = np.array([sample["doc_id"] for sample in kept], dtype=np.int64)
            seen = [sample[name] for sample in kept]
            if _is_mean(seen, value):
                yield RowScores(task, metric, rows, np.array(seen, dtype=np.float64), better.get(name))
            elif name.endswith("perplexity") and (logarithms := _linearised(seen, value)) is not None:
                yield RowScores(task, f"log_{metric}", rows, logarithms, higher_is_better=False)


def within_share(metric: str, low: float, high: float) -> tuple[float, float]:
    """Return the ends of an interval, cut to 0..1 where the metric is a share such as accuracy."""
    return (max(0.0, low), min(1.0, high)) if metric.startswith(_SHARES) else (low, high)


def _metric_names(values: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Return what each metric and filter of a task is called: by the metric alone where it has one filter."""
    pairs = [tuple(key.split(",", 1)) for key in values if "," in key and "_stderr," not in key]
    names = [name for name, _ in pairs]
    return {
        (name, kept_by): name if names.count(name) == 1 else f"{name}:{kept_by}" for name, kept_by in pairs
    }


def _is_mean(seen: Sequence[object], value: float) -> bool:
    if not seen or not math.isfinite(value) or not all(isinstance(item, int | float) for item in seen):
        return False
    return math.isclose(float(np.mean(np.array(seen, dtype=np.float64))), value, rel_tol=1e-9, abs_tol=1e-12)


def _linearised(seen: Sequence[Any], value: float) -> FloatArray | None:
    if not seen or not all(isinstance(item, tuple | list) and len(item) == 2 for item in seen):
        return None
    log_likelihoods, weights = np.array(seen, dtype=np.float64).T
    ratio = -log_likelihoods.sum() / weights.sum()
    if not math.isfinite(ratio) or not math.isclose(math.exp(ratio), value, rel_tol=1e-9):
        return None
    return ratio + (-log_likelihoods - weights * ratio) / weights.mean()


def _wilson_interval(share: float, n: int) -> tuple[float, float]:
    square = _NORMAL_95**2 / n
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def _exponential_interval(logarithms: FloatArray) -> tuple[float, float]:
    if len(logarithms) < 2:
        return math.nan, math.nan
    mean = float(logarithms.mean())
    half = _NORMAL_95 * float(logarithms.std(ddof=1)) / math.sqrt(len(logarithms))
    return math.exp(mean - half), math.exp(mean + half)


def _count(task: str, report: dict[str, Any], counts: dict[str, int]) -> int:
    if task in counts:
        return counts[task]
    return sum(_count(member, report, counts) for member in report["group_subtasks"].get(task, []))


def _interval(metric: str, value: float, standard_error: object) -> tuple[float, float]:
    if not isinstance(standard_error, int | float) or not math.isfinite(standard_error):
        return (0.0, 1.0) if metric.startswith(_SHARES) else (math.nan, math.nan)
    return within_share(metric, value - _NORMAL_95 * standard_error, value + _NORMAL_95 * standard_error)
