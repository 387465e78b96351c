"""Turns the report of an lm-eval run into results with intervals."""

import math
from collections.abc import Iterator
from typing import Any

from clusterucb_core.records import EvalResult

_NORMAL_95 = 1.96
_SHARES = ("acc", "exact_match", "f1", "em", "pass@")


def report_results(report: dict[str, Any], subject: str) -> Iterator[EvalResult]:
    """Give one result for each metric of each task and group of a report.

    The interval is the value plus and minus 1.96 standard errors, cut to 0..1 for shares such as accuracy.
    Where lm-eval knows no standard error, as with a single row, it is 0..1 for shares and NaN for the rest.

    Args:
        report: what `lm_eval.evaluator.evaluate` returns.
        subject: what was evaluated.
    """
    counts = {task: count["effective"] for task, count in report["n-samples"].items()}
    for task, values in report["results"].items():
        metrics = [tuple(key.split(",", 1)) for key in values if "," in key and "_stderr," not in key]
        names = [name for name, _ in metrics]
        for name, kept_by in metrics:
            value = float(values[f"{name},{kept_by}"])
            low, high = _interval(name, value, values.get(f"{name}_stderr,{kept_by}"))
            metric = name if names.count(name) == 1 else f"{name}:{kept_by}"
            yield EvalResult(subject, task, metric, value, low, high, _count(task, report, counts))


def _count(task: str, report: dict[str, Any], counts: dict[str, int]) -> int:
    if task in counts:
        return counts[task]
    return sum(_count(member, report, counts) for member in report["group_subtasks"].get(task, []))


def _interval(metric: str, value: float, standard_error: object) -> tuple[float, float]:
    share = metric.startswith(_SHARES)
    if not isinstance(standard_error, int | float) or not math.isfinite(standard_error):
        return (0.0, 1.0) if share else (math.nan, math.nan)
    low, high = value - _NORMAL_95 * standard_error, value + _NORMAL_95 * standard_error
    return (max(0.0, low), min(1.0, high)) if share else (low, high)
