"""What one selection version will hold, and the checks that it can be published."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import polars as pl

from clusterucb_core.records import Exclusion
from clusterucb_core.store.statements import frame_with, rows

SAMPLE_COLUMNS = ("rank", "sample_id", "influence", "cluster")
PULL_COLUMNS = (
    "step", "round", "cluster", "sample_id", "reward", "kind", "bound", "arm_mean", "arm_std", "arm_left",
)  # fmt: skip
PULL_KINDS = ("cold_start", "draw", "audit", "known")


@dataclass(frozen=True)
class SelectionDraft:
    """One selection before it has a version.

    `selection_key` is the fingerprint of everything that determines the selection: publishing the same key
    again writes nothing. `pulls` has the columns step, round, cluster, sample_id, reward, kind, bound,
    arm_mean, arm_std and arm_left; `samples` has rank (1..k), sample_id, influence and cluster. Either may be
    without rows. `config` is the resolved configuration, `cost` the cost by stage; both are JSON values.
    The recall and captured fields are None where nothing was audited, `separation_p` where the separation of
    the target was not checked; `unspent_samples` is what an early stop left of the budget.
    """

    selection_key: str
    run_id: str
    period: int
    pool_version: int
    target: str
    mode: str
    policy: str
    budget_samples: int
    gradient_evaluations: int
    gradient_evaluations_reused: int
    target_gradient_evaluations: int
    selection_flops: float
    full_selection_flops: float
    cost: dict[str, Any]
    config: dict[str, Any]
    config_digest: str
    code_version: str
    mlflow_run_id: str | None
    flow_run_id: str | None
    pulls: pl.DataFrame
    samples: pl.DataFrame
    exclusions: tuple[Exclusion, ...] = ()
    estimated_recall: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None
    unspent_samples: int = 0
    estimated_captured: float | None = None
    captured_low: float | None = None
    captured_high: float | None = None
    separation_p: float | None = None


def check_drafts(con: duckdb.DuckDBPyConnection, drafts: Sequence[SelectionDraft]) -> None:
    """Refuse drafts that cannot become versions, before anything is written.

    Raises:
        ValueError: a key occurs twice, a frame lacks a column, ranks are not 1..k, a sample or a step occurs
            twice, a pull has an unknown kind, an id is not in the pool version, or `cost` or `config` is no
            JSON.
    """
    twice = [key for key, n in Counter(draft.selection_key for draft in drafts).items() if n > 1]
    if twice:
        raise ValueError(f"selection key {twice[0]!r} is that of several drafts; publish each selection once")
    for draft in drafts:
        _check_samples(draft)
        _check_pulls(draft)
        _check_pool(con, draft)
        json_text(draft.cost)
        json_text(draft.config)


def json_text(value: dict[str, Any]) -> str:
    """Return a value as JSON text.

    Raises:
        ValueError: it holds NaN or an infinity, which JSON cannot.
        TypeError: it holds an object that is no JSON value.
    """
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _check_samples(draft: SelectionDraft) -> None:
    if draft.samples.is_empty():
        return
    _check_columns(draft, draft.samples, SAMPLE_COLUMNS, name="samples")
    ranks = draft.samples["rank"].sort().to_list()
    if ranks != list(range(1, len(ranks) + 1)):
        gap = next((i, rank) for i, rank in enumerate(ranks, start=1) if i != rank)
        raise ValueError(
            f"{_named(draft)}: ranks must be 1..{len(ranks)} without gaps, found {gap[1]} as {gap[0]}"
        )
    _check_once(draft, draft.samples["sample_id"], name="samples")


def _check_pulls(draft: SelectionDraft) -> None:
    if draft.pulls.is_empty():
        return
    _check_columns(draft, draft.pulls, PULL_COLUMNS, name="pulls")
    _check_once(draft, draft.pulls["step"], name="pulls")
    unknown = sorted(set(draft.pulls["kind"].to_list()) - set(PULL_KINDS), key=str)
    if unknown:
        raise ValueError(
            f"{_named(draft)}: pull kind {unknown[0]!r} is unknown; known: {', '.join(PULL_KINDS)}"
        )


def _check_pool(con: duckdb.DuckDBPyConnection, draft: SelectionDraft) -> None:
    if not rows(con, "SELECT 1 FROM pools WHERE pool_version = ?", [draft.pool_version]):
        raise ValueError(
            f"{_named(draft)}: there is no pool version {draft.pool_version}; record the pool first"
        )
    for name, part in (("samples", draft.samples), ("pulls", draft.pulls)):
        if part.is_empty():
            continue
        strangers = frame_with(
            con,
            "SELECT sample_id FROM incoming "
            "ANTI JOIN (FROM pool_samples WHERE pool_version = ?) AS members USING (sample_id) "
            "ORDER BY sample_id",
            part.select("sample_id"),
            parameters=[draft.pool_version],
        )
        if len(strangers):
            raise ValueError(
                f"{_named(draft)}: {len(strangers)} rows of {name} are not in pool version "
                f"{draft.pool_version}, the first {strangers.item(0, 0)!r}"
            )


def _check_columns(draft: SelectionDraft, part: pl.DataFrame, columns: tuple[str, ...], *, name: str) -> None:
    missing = [column for column in columns if column not in part.columns]
    if missing:
        raise ValueError(f"{_named(draft)}: {name} lack the columns {missing}; found {part.columns}")


def _check_once(draft: SelectionDraft, values: pl.Series, *, name: str) -> None:
    repeated = values.filter(values.is_duplicated() | values.is_null())
    if len(repeated):
        raise ValueError(f"{_named(draft)}: {values.name} {repeated[0]!r} of {name} is empty or occurs twice")


def _named(draft: SelectionDraft) -> str:
    return f"selection of run {draft.run_id!r}, target {draft.target!r}, period {draft.period}"
