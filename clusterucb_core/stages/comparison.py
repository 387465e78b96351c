"""Policies and budgets replayed on rewards that are all known: no model is loaded, nothing is computed.

Reads the feature shards that full-gradient selection left; writes the artifact `comparison`.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field

from clusterucb_core.artifacts import artifact_file, new_artifact, read_manifest
from clusterucb_core.certificate import Certificate
from clusterucb_core.cost import StageCost
from clusterucb_core.errors import BudgetError, MissingArtifact
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.frozen import Frozen
from clusterucb_core.influence import Judgement, judge, select_top
from clusterucb_core.lm.tokens import token_counts
from clusterucb_core.pacing import Pace, paced
from clusterucb_core.records import ArtifactRef, FloatArray, IntArray
from clusterucb_core.seeds import child_rng, child_seed
from clusterucb_core.selection import (
    POLICY_NAMES,
    PolicyName,
    SelectionSettings,
    baseline_seed,
    check_selection,
    is_bandit,
)
from clusterucb_core.stages.accounting import replayed_cost
from clusterucb_core.stages.certificates import certificate_of
from clusterucb_core.stages.drawing import DrawSpec, DrawTable, draw_from, open_table
from clusterucb_core.stages.draws import best_drawn, chance_rows, selected_samples
from clusterucb_core.stages.intake import read_target
from clusterucb_core.stages.scores import BookFiller, total_scores, usable_rows
from clusterucb_core.workspace import StageSpec, Workspace, resumable, stage_key, written

logger = logging.getLogger(__name__)

REPLAYS = "comparison.parquet"
SCHEMA = {
    "target": pl.String,
    "policy": pl.String,
    "budget_fraction": pl.Float64,
    "seed": pl.Int64,
    "period": pl.Int64,
    "captured_influence": pl.Float64,
    "recall": pl.Float64,
    "draws": pl.Int64,
    "gradient_evaluations": pl.Int64,
    "gradient_cost": pl.Float64,
    "selection_flops": pl.Float64,
    "flops_share": pl.Float64,
    "estimated_recall": pl.Float64,
    "recall_low": pl.Float64,
    "recall_high": pl.Float64,
    "covered": pl.Boolean,
}


class CompareSettings(Frozen):
    """Policies and budgets to compare against the full-gradient oracle."""

    policies: tuple[PolicyName, ...] = Field(
        default=(), title="Policies", description="Policies to compare; empty: all of them."
    )
    budget_fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.05, 0.1, 0.2), min_length=1, title="Budgets", description="Budgets as shares of the pool."
    )
    seeds: int = Field(
        default=3, ge=1, title="Seeds", description="Repetitions of each pair of policy and budget."
    )
    max_samples: int | None = Field(
        default=None,
        ge=1,
        title="Largest pool",
        description="Compare on a part of the pool, taken as pool.max_samples takes it; none: on all of it.",
    )
    finetune: bool = Field(
        default=False,
        title="Fine-tune",
        description="Also select for real by each setting, train on it, and measure the test loss.",
    )


class Setting(Frozen):
    """A policy at a budget; `random` and `full` have none."""

    policy: str
    budget_fraction: float | None = None


class CompareSpec(StageSpec):
    """Settings to replay on the selections of full gradients.

    `periods` are those selections whose place a setting's own would take. `shared` are those that every
    bandit policy makes with a full pass as well: in dynamic mode the first one.
    """

    stage: str = "comparison"
    version: int = 1
    shared: tuple[DrawSpec, ...]
    periods: tuple[DrawSpec, ...]
    settings: tuple[Setting, ...]
    seeds: int


@dataclass(frozen=True)
class _Oracle:
    """What replays of one period are drawn from and measured by.

    `scores` [m, s] are those of every sample with a gradient at all checkpoints; `places` [n] says where
    among them a row of the table is, -1 for a row that is not; `tokens` how many every sample has.
    """

    spec: DrawSpec
    table: DrawTable
    filler: BookFiller
    scores: FloatArray
    places: IntArray
    tokens: Mapping[str, int]


@dataclass(frozen=True)
class _Replay:
    """What one setting came to in one period under one seed, and what its draws there take."""

    setting: Setting
    number: int
    period: int
    judgement: Judgement
    draws: int
    cost: StageCost
    certificate: Certificate | None


def compared_settings(settings: CompareSettings) -> tuple[Setting, ...]:
    """Return every policy at every budget in ascending order, then `random` and `full`, each one once."""
    policies = [name for name in settings.policies or POLICY_NAMES if is_bandit(name)]
    budgets = sorted(set(settings.budget_fractions))
    pairs = itertools.product(dict.fromkeys(policies), budgets)
    drawn = [Setting(policy=policy, budget_fraction=budget) for policy, budget in pairs]
    return (*drawn, Setting(policy="random"), Setting(policy="full"))


def setting_selection(selection: SelectionSettings, setting: Setting) -> SelectionSettings:
    """Return the selection settings of a run with the policy and budget of a setting in them."""
    changed: dict[str, object] = {"policy": setting.policy}
    if setting.budget_fraction is not None:
        changed["budget_fraction"] = setting.budget_fraction
    return selection.model_copy(update=changed)


def check_comparison(settings: CompareSettings, selection: SelectionSettings) -> None:
    """Refuse settings that no policy could be replayed with.

    Raises:
        InvalidConfig: side information that this version does not have.
        BudgetError: a budget not above the audit that is part of it, or below what is to be selected.
    """
    for setting in compared_settings(settings):
        try:
            check_selection(setting_selection(selection, setting))
        except BudgetError as error:
            raise BudgetError(f"compare.budget_fractions, {setting.policy}: {error}") from error


def draw_seed(seed: int, setting: Setting, number: int) -> int:
    """Return the seed of the draws of one repetition, counted from 0.

    The first repetition of a policy draws as a run with this seed does, and the repetitions of `random` are
    a run's baselines `random:0`, `random:1` and so on.
    """
    if setting.policy == "random":
        return baseline_seed(seed, number)
    return child_seed(seed, "comparison", str(number)) if number else seed


def repetitions(setting: Setting, seeds: int) -> range:
    """Return the numbers of a setting's repetitions; `full` has nothing that could vary."""
    return range(1 if setting.policy == "full" else seeds)


@resumable
def run_comparison(spec: CompareSpec, workspace: Workspace, execution: ExecutionSettings) -> ArtifactRef:
    """Replay every setting in every period under every seed; a table of one row each.

    A setting whose budget does not reach the end of its cold start is left out, and the manifest says why.

    Raises:
        MissingArtifact: a gradient that full selection has computed is not in the store.
    """
    replays: list[_Replay] = []
    impossible: dict[Setting, str] = {}
    pace = Pace(logger, "replays", "settings", len(spec.periods) * len(spec.settings))
    for period in spec.periods:
        oracle = _open_oracle(spec, period, workspace, execution)
        for setting in paced(spec.settings, pace):
            if setting in impossible:
                continue
            try:
                numbers = repetitions(setting, spec.seeds)
                replays += [_replay(oracle, setting, number=number) for number in numbers]
            except BudgetError as error:
                impossible[setting] = str(error)
    possible = [replay for replay in replays if replay.setting not in impossible]
    manifest: dict[str, Any] = {
        "impossible": [setting.model_dump() | {"reason": reason} for setting, reason in impossible.items()],
        "audit_fraction": spec.periods[0].settings.audit_fraction,
    }
    with new_artifact(workspace.artifacts, spec.stage, stage_key(spec), manifest) as folder:
        _frame(spec, possible).write_parquet(folder / REPLAYS)
    return written(spec, workspace)


def read_replays(ref: ArtifactRef) -> pl.DataFrame:
    """Return one row for every setting, seed and period.

    `gradient_evaluations` and `selection_flops` are those of all the selections of a run by that setting
    and seed, whoever computed them, and `gradient_cost` and `flops_share` their shares of full selection's.
    """
    return pl.read_parquet(artifact_file(ref, REPLAYS))


def impossible_settings(ref: ArtifactRef) -> dict[Setting, str]:
    """Return the settings that could not be replayed, with the reason."""
    found = read_manifest(ref)["impossible"]
    return {
        Setting(policy=item["policy"], budget_fraction=item["budget_fraction"]): item["reason"]
        for item in found
    }


def possible_repetitions(spec: CompareSpec, replays: ArtifactRef) -> list[tuple[Setting, int]]:
    """Return every setting that could be replayed with the number of each repetition."""
    impossible = impossible_settings(replays)
    possible = [setting for setting in spec.settings if setting not in impossible]
    return [(setting, number) for setting in possible for number in repetitions(setting, spec.seeds)]


def _open_oracle(
    spec: CompareSpec, period: DrawSpec, workspace: Workspace, execution: ExecutionSettings
) -> _Oracle:
    # one table serves all settings, so it has side information where any of them asks for it
    by_sample = [setting for setting in spec.settings if setting.policy == "linucb"]
    opened = _with_setting(period, by_sample[0], seed=period.seed) if by_sample else period
    table = open_table(opened, workspace)
    rows = usable_rows(table.book)
    scores = total_scores(table.book, rows)
    if missing := int(np.isnan(scores).any(axis=1).sum()):
        raise MissingArtifact(
            f"{missing} of {len(rows)} samples lack a gradient of period {period.period}, on which policies "
            "are to be replayed; run the comparison again to compute them"
        )
    places = np.full(len(table.clusters), -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    return _Oracle(
        spec=period,
        table=table,
        filler=BookFiller(period.tokens, workspace=workspace, execution=execution, run_id=period.run_id),
        scores=scores,
        places=places,
        tokens=token_counts(period.tokens),
    )


def _with_setting(spec: DrawSpec, setting: Setting, *, seed: int) -> DrawSpec:
    return spec.model_copy(update={"settings": setting_selection(spec.settings, setting), "seed": seed})


def _replay(oracle: _Oracle, setting: Setting, *, number: int) -> _Replay:
    spec = _with_setting(oracle.spec, setting, seed=draw_seed(oracle.spec.seed, setting, number))
    k, aggregate, certificate = selected_samples(spec), spec.settings.aggregate, None
    seen: IntArray = np.zeros(0, dtype=np.int64)
    if setting.policy == "random":
        chosen = chance_rows(spec, len(oracle.scores), k)
    elif setting.policy == "full":
        chosen = select_top(oracle.scores, k, aggregate=aggregate).rows
        seen = np.flatnonzero(oracle.places >= 0)
    else:
        drawn = draw_from(oracle.table, spec, oracle.filler)
        choice, seen = best_drawn(drawn, k, aggregate), drawn.seen
        chosen = oracle.places[choice.rows]
        rng = child_rng(spec.seed, "certificate", str(spec.period))
        certificate = certificate_of(drawn, choice, aggregate=aggregate, rng=rng)
    drawn_ids = frozenset(oracle.table.book.sample_ids[row] for row in seen)
    return _Replay(
        setting=setting,
        number=number,
        period=spec.period,
        judgement=judge(oracle.scores, chosen, aggregate=aggregate),
        draws=len(drawn_ids),
        cost=replayed_cost(spec, drawn_ids, tokens=oracle.tokens),
        certificate=certificate,
    )


def _frame(spec: CompareSpec, replays: list[_Replay]) -> pl.DataFrame:
    target = read_target(spec.periods[0].target).name
    tokens = token_counts(spec.periods[0].tokens)
    nothing: frozenset[str] = frozenset()
    shared, later = (
        _sum(replayed_cost(period, nothing, tokens=tokens) for period in periods)
        for periods in (spec.shared, spec.periods)
    )
    full = _sum([shared, later])
    totals: dict[tuple[Setting, int], StageCost] = {}
    for replay in replays:
        start = StageCost(0, 0.0) if replay.setting.policy == "random" else shared
        key = (replay.setting, replay.number)
        totals[key] = _sum([totals.get(key, start), replay.cost])
    rows = [_row(replay, totals[replay.setting, replay.number], full, target=target) for replay in replays]
    return pl.DataFrame(rows, schema=SCHEMA)


def _row(replay: _Replay, total: StageCost, full: StageCost, *, target: str) -> dict[str, object]:
    certificate, recall = replay.certificate, replay.judgement.recall
    return {
        "target": target,
        "policy": replay.setting.policy,
        "budget_fraction": replay.setting.budget_fraction,
        "seed": replay.number,
        "period": replay.period,
        "captured_influence": replay.judgement.captured_influence,
        "recall": recall,
        "draws": replay.draws,
        "gradient_evaluations": total.gradient_evaluations,
        "gradient_cost": total.gradient_evaluations / full.gradient_evaluations,
        "selection_flops": total.flops,
        "flops_share": total.flops / full.flops,
        "estimated_recall": None if certificate is None else certificate.recall,
        "recall_low": None if certificate is None else certificate.recall_low,
        "recall_high": None if certificate is None else certificate.recall_high,
        "covered": None
        if certificate is None
        else certificate.recall_low <= recall <= certificate.recall_high,
    }


def _sum(costs: Iterator[StageCost] | list[StageCost]) -> StageCost:
    every = list(costs)
    return StageCost(
        sum(cost.gradient_evaluations for cost in every), float(sum(cost.flops for cost in every))
    )
