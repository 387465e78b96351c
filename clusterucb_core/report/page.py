"""A report as one HTML page: numbers marked with where they come from, all text escaped."""

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from clusterucb_core.report.content import ReportContent
from clusterucb_core.report.draws import DrawBin, draw_bins, thinned_rewards
from clusterucb_core.report.figures import (
    MOST_DOTS,
    balance_figure,
    bounds_figure,
    cost_figure,
    loss_figure,
    map_figure,
    rewards_figure,
    sources_figure,
)
from clusterucb_core.report.pool_map import PoolMap
from clusterucb_core.separation import chance_warning
from clusterucb_core.store import SelectionSummary

ABSENT = "–"
SHOWN_CLUSTERS, CLUSTERS_WITH_EXAMPLES = 15, 15
FULL = "full"
_STYLES = {
    "count": ",.0f",
    "decimal": ".4f",
    "percent": ".1%",
    "power": ".2e",
    "seconds": ",.1f",
    "small": ".2g",
    "tenths": ".1f",
}


def render_page(content: ReportContent, *, laid_out: PoolMap | str, digests: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        content: what the catalog holds.
        laid_out: the map of the pool, or why there is none.
        digests: names and fingerprints of the artifacts that the selection rests on.
    """
    environment = Environment(
        loader=PackageLoader("clusterucb_core.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, _, _ = environment.loader.get_source(environment, "style.css")  # pyright: ignore[reportOptionalMemberAccess]
    page = environment.get_template("page.html")
    bandit = _bandit(content)
    text = page.render(
        facts=content,
        number=_number,
        verdict=_verdict,
        style=Markup(style),  # noqa: S704 - our own file
        **_quality(content),
        **_cost(content),
        **bandit,
        **_origin(content),
        **_map(laid_out),
        svg=_drawings(content, laid_out, bins=bandit["bins"]),
        provenance=_provenance(content, digests),
        commands=_commands(content),
        configuration=yaml.safe_dump(content.summary.config, sort_keys=False, allow_unicode=True),
        program_version=importlib.metadata.version("clusterucb"),
    )
    return _harmless(text)


def _number(value: float | None, of: str, key: object = "", style: str = "count") -> Markup:
    """Return a number as an element that tells its exact value, and the field and row that it comes from."""
    if value is None or not math.isfinite(value):
        return escape(ABSENT)
    text = format(value, _STYLES[style])
    return Markup('<data value="{}" data-of="{}" data-key="{}">{}</data>').format(repr(value), of, key, text)


def _quality(content: ReportContent) -> dict[str, Any]:
    rows = [row | {"key": _key(row)} for row in content.evaluations]
    tasks = dict.fromkeys((row["task"], row["metric"]) for row in rows)
    scores = [_score(rows, task, metric) for task, metric in tasks]
    own = {row["metric"]: row for row in rows if row["subject"] == "selection"}
    losses = {row["subject"]: row for row in rows if row["metric"] == "loss"}
    p = content.summary.separation_p
    return {
        "evaluations": rows,
        "comparisons": [
            row | {"key": f"{row['task']}|{row['metric']}|{row['baseline']}"} for row in content.comparisons
        ],
        "scores": scores,
        "measured": own,
        "losses": losses,
        "random_loss": next((row["random_mean"] for row in scores if row["metric"] == "loss"), None),
        "warning": None if p is None else chance_warning(p),
    }


def _key(row: Mapping[str, Any]) -> str:
    return f"{row['task']}|{row['metric']}|{row['subject']}"


def _score(rows: Sequence[dict[str, Any]], task: str, metric: str) -> dict[str, Any]:
    """Return what each kind of subject reached on one metric; random selections as their mean."""
    found = {row["subject"]: row for row in rows if (row["task"], row["metric"]) == (task, metric)}
    random = [row["value"] for subject, row in found.items() if subject.startswith("random:")]
    first = next(iter(found.values()))
    return {
        "task": task,
        "metric": metric,
        "random_mean": sum(random) / len(random) if random else None,
        "n": first["n"],
        "n_key": first["key"],
        **{subject: found.get(subject) for subject in ("selection", "full", "zero_shot")},
    }


def _cost(content: ReportContent) -> dict[str, Any]:
    summary = content.summary
    costs = [
        {
            "stage": stage,
            "name": "selection by all gradients, to compare" if stage == FULL else stage,
            "gradient_evaluations": cost.get("gradient_evaluations"),
            "flops": cost.get("flops"),
        }
        for stage, cost in summary.cost.items()
    ]
    flops, full = summary.selection_flops, summary.full_selection_flops
    return {
        "costs": costs,
        "full_evaluations": summary.cost.get(FULL, {}).get("gradient_evaluations"),
        "flops_share": None if flops is None or not full else flops / full,
        "run": _run_cost(content.periods),
    }


def _verdict(row: Mapping[str, Any]) -> str:
    """Return which side a difference speaks for: neither where its interval holds 0."""
    low, high, higher_is_better = row["low"], row["high"], row["higher_is_better"]
    if low is None or high is None or higher_is_better is None:
        return ABSENT
    if low <= 0.0 <= high:
        return "neither"
    return "the selection" if (low > 0.0) == higher_is_better else "the baseline"


def _run_cost(periods: Sequence[SelectionSummary]) -> dict[str, float | None] | None:
    """Return what the selections of a run took together; None where there is one only."""
    if len(periods) < 2:
        return None
    flops = [item.selection_flops for item in periods if item.selection_flops is not None]
    full = [item.full_selection_flops for item in periods if item.full_selection_flops]
    known = len(flops) == len(full) == len(periods)
    return {
        "periods": len(periods),
        "gradient_evaluations": sum(item.gradient_evaluations for item in periods),
        "flops_share": sum(flops) / sum(full) if known else None,
    }


def _origin(content: ReportContent) -> dict[str, Any]:
    clusters = content.clusters
    parts = [clusters[:SHOWN_CLUSTERS], clusters[SHOWN_CLUSTERS:]]
    shown = [row["cluster"] for row in clusters if row["cluster"] in content.examples]
    return {
        "cluster_parts": [part for part in parts if part],
        "examples": [(cluster, content.examples[cluster]) for cluster in shown[:CLUSTERS_WITH_EXAMPLES]],
    }


def _bandit(content: ReportContent) -> dict[str, Any]:
    shown = len(thinned_rewards(content.pulls, most=MOST_DOTS))
    return {
        "bins": draw_bins(content.pulls, content.summary.n_selected),
        "thinned": shown < content.pulls["reward"].count(),
        "shown_draws": shown,
    }


def _map(laid_out: PoolMap | str) -> dict[str, Any]:
    if isinstance(laid_out, str):
        return {"map": None, "no_map": laid_out}
    facts = {
        "n_shown": len(laid_out.places),
        "n_known": laid_out.n_known,
        "n_chosen": laid_out.n_chosen,
    }
    return {"map": facts, "no_map": None}


def _drawings(
    content: ReportContent, laid_out: PoolMap | str, *, bins: Sequence[DrawBin]
) -> dict[str, Markup | None]:
    losses = [row for row in content.evaluations if row["metric"] == "loss" and row["value"] is not None]
    summary, k = content.summary, content.summary.n_selected
    stages = [
        (name, cost["flops"]) for name, cost in summary.cost.items() if name != FULL and cost.get("flops")
    ]
    full = summary.full_selection_flops
    drawn = content.pulls.height > 0
    found = {
        "loss": loss_figure(losses) if losses else None,
        "cost": cost_figure(stages, full) if stages and full else None,
        "sources": sources_figure(content.sources) if content.sources else None,
        "rewards": rewards_figure(content.pulls, k) if drawn else None,
        "bounds": bounds_figure(content.pulls) if drawn else None,
        "balance": balance_figure(bins) if bins else None,
        "map": None if isinstance(laid_out, str) else map_figure(laid_out),
    }
    # drawings escape the names in them themselves
    return {name: None if text is None else Markup(text) for name, text in found.items()}  # noqa: S704


def _provenance(content: ReportContent, digests: Mapping[str, str]) -> list[tuple[str, object]]:
    summary, pool = content.summary, content.pool
    facts = {
        "selection version": summary.selection_version,
        "selection key": summary.selection_key,
        "run": summary.run_id,
        "written": summary.created_at.isoformat(),
        "pool version": pool.pool_version,
        "pool digest": pool.digest,
        "target": summary.target,
        "model": summary.config.get("model", {}).get("base"),
        "seed": summary.config.get("seed"),
        "configuration digest": summary.config_digest,
        "code version": summary.code_version,
        **digests,
        "MLflow run": summary.mlflow_run_id,
        "Prefect flow run": summary.flow_run_id,
    }
    return [(name, ABSENT if value is None else value) for name, value in facts.items()]


def _commands(content: ReportContent) -> str:
    number = content.summary.selection_version
    lines = (
        "clusterucb check run.yaml",
        "clusterucb run run.yaml",
        f"clusterucb show {number}",
        f"clusterucb export {number} selected.jsonl",
    )
    return "\n".join(lines)


def _harmless(text: str) -> str:
    """Replace the control characters that HTML cannot hold."""
    return "".join(c if c in "\n\t" or not _is_control(c) else "\ufffd" for c in text)


def _is_control(character: str) -> bool:
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
