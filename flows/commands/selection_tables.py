"""A selection version, or all of them, as tables."""

import json
from typing import TYPE_CHECKING, Any

from flows.rendering import count, cut, decimal, interval, percent, print_table, say

if TYPE_CHECKING:
    import polars as pl

    from clusterucb_core.store import SelectionSummary

TEXT_CHARS = 70


def print_list(summaries: "list[SelectionSummary]") -> None:
    """Print one line for each selection version."""
    headers = [
        "version",
        "created",
        "target",
        "mode",
        "policy",
        "period",
        "pool",
        "selected",
        "budget",
        "gradients",
    ]
    rows = [
        [
            summary.selection_version,
            f"{summary.created_at:%Y-%m-%d %H:%M}",
            summary.target,
            summary.mode,
            summary.policy,
            summary.period,
            summary.pool_version,
            count(summary.n_selected),
            count(summary.budget_samples),
            count(summary.gradient_evaluations + summary.gradient_evaluations_reused),
        ]
        for summary in summaries
    ]
    print_table(headers, rows, left=5)


def print_summary(summary: "SelectionSummary") -> None:
    """Print what is known of a selection version as a whole."""
    from clusterucb_core.separation import chance_warning

    recall = interval(summary.estimated_recall, summary.recall_low, summary.recall_high)
    captured = interval(summary.estimated_captured, summary.captured_low, summary.captured_high)
    facts = {
        "selection version": summary.selection_version,
        "created": f"{summary.created_at:%Y-%m-%d %H:%M} UTC",
        "target": summary.target,
        "mode, period": f"{summary.mode}, {summary.period}",
        "policy": summary.policy,
        "pool version": summary.pool_version,
        "selected": count(summary.n_selected),
        "budget": count(summary.budget_samples),
        "unspent": count(summary.unspent_samples),
        "gradient evaluations": count(summary.gradient_evaluations),
        "reused, computed before": count(summary.gradient_evaluations_reused),
        "operations": _operations(summary),
        "of the target": count(summary.target_gradient_evaluations),
        "estimated recall": recall or "not audited",
        "estimated captured influence": captured or ("not audited" if recall is None else None),
        "separation, p": "not checked" if summary.separation_p is None else f"{summary.separation_p:.2g}",
        "run": summary.run_id,
        "code version": summary.code_version,
        "MLflow run": summary.mlflow_run_id,
        "Prefect flow run": summary.flow_run_id,
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        say(f"{name:<{width}}  {'-' if value is None else value}")
    warning = None if summary.separation_p is None else chance_warning(summary.separation_p)
    if warning is not None:
        say(f"\nwarning: target {summary.target!r}: {warning}")


def _operations(summary: "SelectionSummary") -> str | None:
    flops, full = summary.selection_flops, summary.full_selection_flops
    if flops is None:
        return None
    return f"{flops:.2e}" + (f", {percent(flops, full)} of full selection's" if full else "")


def print_cost(summary: "SelectionSummary") -> None:
    """Print the gradients and operations of each stage, and those of full selection."""
    rows: list[list[object]] = []
    for stage, cost in summary.cost.items():
        fields: dict[str, Any] = cost if isinstance(cost, dict) else {}
        flops = fields.get("flops")
        name = "full selection, to compare" if stage == "full" else stage
        rows.append(
            [name, count(fields.get("gradient_evaluations")), None if flops is None else f"{flops:.2e}"]
        )
    if rows:
        print_table(["cost by stage", "gradient evaluations", "operations"], rows, gap=True)


def print_sources(sources: "pl.DataFrame") -> None:
    """Print each source's share of the selection beside its share of the pool."""
    selected, pool = int(sources["n_selected"].sum()), int(sources["n_pool"].sum())
    rows = [
        [
            row["source"],
            count(row["n_selected"]),
            percent(row["n_selected"], selected),
            count(row["n_pool"]),
            percent(row["n_pool"], pool),
        ]
        for row in sources.to_dicts()
    ]
    print_table(["source", "selected", "share", "in the pool", "share"], rows, gap=True)


def print_evaluations(evaluations: "pl.DataFrame") -> None:
    """Print what was measured on a selection and on the baselines of its run."""
    rows = [
        [
            row["task"],
            row["metric"],
            row["subject"],
            interval(row["value"], row["low"], row["high"]),
            count(row["n"]),
        ]
        for row in evaluations.to_dicts()
    ]
    if rows:
        print_table(["task", "metric", "subject", "value [95 %]", "n"], rows, gap=True, left=3)


def print_comparisons(comparisons: "pl.DataFrame") -> None:
    """Print the differences of a selection to its baselines, and which of the two each speaks for."""
    rows = [
        [
            row["task"],
            row["metric"],
            row["baseline"],
            _better(row),
            interval(row["difference"], row["low"], row["high"]),
            count(row["n"]),
            count(row["n_seeds"]),
        ]
        for row in comparisons.to_dicts()
    ]
    if rows:
        headers = ["task", "metric", "selection less", "better", "difference [95 %]", "n", "seeds"]
        print_table(headers, rows, gap=True, left=4)


def _better(row: dict[str, Any]) -> str | None:
    """Return which side a difference speaks for; None where its interval holds 0 or is not known."""
    if row["low"] is None or row["higher_is_better"] is None or row["low"] <= 0 <= row["high"]:
        return None
    return "selection" if (row["difference"] > 0) == row["higher_is_better"] else row["baseline"]


def print_top(top: "pl.DataFrame") -> None:
    """Print the first samples with the beginning of their text."""
    rows = [
        [
            sample["rank"],
            decimal(sample["influence"]),
            sample["cluster"],
            sample["source"],
            cut(_opening(sample["messages"]), TEXT_CHARS),
        ]
        for sample in sample_rows(top)
    ]
    print_table(["rank", "influence", "cluster", "source", "text"], rows, gap=True, left=5)


def sample_rows(top: "pl.DataFrame") -> list[dict[str, Any]]:
    """Return samples with their messages parsed; None where a sample was erased."""
    return [
        {**row, "messages": None if row["messages"] is None else json.loads(row["messages"])}
        for row in top.to_dicts()
    ]


def _opening(messages: list[dict[str, str]] | None) -> str:
    if messages is None:
        return "(erased)"
    spoken = [turn["content"] for turn in messages if turn["role"] != "system"]
    return spoken[0] if spoken else ""
