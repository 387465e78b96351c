"""Everything that a report says of a selection version. Reads the catalog only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from clusterucb_core.store import (
    PoolVersion,
    SelectionDifference,
    SelectionSummary,
    cluster_examples,
    list_selections,
    lowest_pulls,
    open_catalog,
    pool_version,
    previous_selection,
    run_stages,
    selection_clusters,
    selection_comparisons,
    selection_difference,
    selection_evaluations,
    selection_pulls,
    selection_samples,
    selection_sources,
    selection_summary,
    withdrawn_in,
)

BEST_SAMPLES, EDGE_SAMPLES, LOWEST_SAMPLES = 10, 5, 10
EXAMPLES_OF_A_CLUSTER = 2
_TURN_CHARS, _TURNS = 1200, 6


@dataclass(frozen=True)
class ShownSample:
    """A sample with what is shown of its text.

    `value` is its influence or reward. `turns` are pairs of a role and its text, None where the sample was
    erased or withdrawn or the report holds no texts. `cut` tells that there is more.
    """

    sample_id: str
    source: str | None
    cluster: int | None
    rank: int | None
    value: float | None
    turns: tuple[tuple[str, str], ...] | None
    cut: bool = False


@dataclass(frozen=True)
class ReportContent:
    """What the catalog holds of a selection version, as a report shows it.

    `examples` are by cluster. `periods` are the selections of the same run and target up to this one.
    `previous` and `difference` are None for the first selection of a target.
    """

    summary: SelectionSummary
    pool: PoolVersion
    evaluations: tuple[dict[str, Any], ...]
    comparisons: tuple[dict[str, Any], ...]
    sources: tuple[dict[str, Any], ...]
    clusters: tuple[dict[str, Any], ...]
    examples: Mapping[int, tuple[ShownSample, ...]]
    pulls: pl.DataFrame
    selected: pl.DataFrame
    best: tuple[ShownSample, ...]
    edge: tuple[ShownSample, ...]
    lowest: tuple[ShownSample, ...]
    stages: tuple[dict[str, Any], ...]
    periods: tuple[SelectionSummary, ...]
    previous: SelectionSummary | None
    difference: SelectionDifference | None
    has_texts: bool


def read_content(catalog: Path, version: int | None, *, texts: bool) -> ReportContent:
    """Return what a report shows of a version.

    Args:
        catalog: the DuckDB file.
        version: a selection version; None means the last period of the newest complete run.
        texts: whether samples are shown with their text.

    Raises:
        MissingArtifact: there is no catalog.
        UnknownVersion: the catalog holds no such version.
    """
    with open_catalog(catalog, read_only=True) as con:
        summary = selection_summary(con, version)
        number = summary.selection_version
        previous = previous_selection(con, number)
        hidden = withdrawn_in(con)
        selected = selection_samples(con, number)
        best, rest = selected.head(BEST_SAMPLES), selected.slice(BEST_SAMPLES)

        def shown(found: pl.DataFrame, value: str) -> tuple[ShownSample, ...]:
            rows = found.iter_rows(named=True)
            return tuple(
                _shown(row, row[value], texts=texts and row["sample_id"] not in hidden) for row in rows
            )

        examples = cluster_examples(con, number, most=EXAMPLES_OF_A_CLUSTER)
        return ReportContent(
            summary=summary,
            pool=pool_version(con, summary.pool_version),
            evaluations=tuple(selection_evaluations(con, number).to_dicts()),
            comparisons=tuple(selection_comparisons(con, number).to_dicts()),
            sources=tuple(selection_sources(con, number).to_dicts()),
            clusters=tuple(selection_clusters(con, number).to_dicts()),
            examples={
                int(cluster): shown(examples.filter(cluster=cluster), "influence")
                for cluster in examples["cluster"].unique(maintain_order=True)
            },
            pulls=selection_pulls(con, number),
            selected=selected.drop("messages"),
            best=shown(best, "influence"),
            edge=shown(rest.tail(EDGE_SAMPLES), "influence"),
            lowest=shown(lowest_pulls(con, number, most=LOWEST_SAMPLES), "reward"),
            stages=tuple(run_stages(con, summary.run_id).to_dicts()),
            periods=tuple(
                item
                for item in list_selections(con)
                if (item.run_id, item.target) == (summary.run_id, summary.target)
                and item.period <= summary.period
            ),
            previous=previous,
            difference=(
                selection_difference(con, previous.selection_version, number)
                if previous is not None
                else None
            ),
            has_texts=texts,
        )


def _shown(row: dict[str, Any], value: float | None, *, texts: bool) -> ShownSample:
    messages = json.loads(row["messages"]) if texts and row["messages"] is not None else None
    turns = None if messages is None else [(turn["role"], turn["content"]) for turn in messages]
    return ShownSample(
        sample_id=row["sample_id"],
        source=row["source"],
        cluster=row["cluster"],
        rank=row.get("rank"),
        value=value,
        turns=None if turns is None else tuple((role, text[:_TURN_CHARS]) for role, text in turns[:_TURNS]),
        cut=turns is not None and (len(turns) > _TURNS or any(len(text) > _TURN_CHARS for _, text in turns)),
    )
