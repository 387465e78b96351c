"""What each setting of a comparison came to: means over seeds and periods, with their standard errors.

Reads the artifacts `comparison` and `evaluation`.
"""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from clusterucb_core.artifacts import read_manifest
from clusterucb_core.evaluation import loss_result
from clusterucb_core.frozen import Frozen
from clusterucb_core.records import ArtifactRef, EvalResult
from clusterucb_core.stages.comparison import Setting, impossible_settings, read_replays
from clusterucb_core.stages.evaluation import read_losses


class Trained(Frozen):
    """The evaluation of the adapter that one repetition of a setting gave."""

    setting: Setting
    evaluation: ArtifactRef


class SettingSummary(Frozen):
    """One line of a comparison; None where there is nothing to tell.

    Attributes:
        target: name of the target.
        policy: name of the policy.
        budget_fraction: share of the pool drawn in one selection; None for `random` and `full`.
        replays: seeds x periods that the means are over.
        captured_influence: mean, with its standard error in `captured_se`.
        captured_by_period: its mean in each period that was replayed.
        recall: mean, with its standard error in `recall_se`.
        draws: mean number of samples drawn in one selection.
        gradient_evaluations: of all selections of a run, whoever computed them; mean over seeds.
        gradient_cost: their share of full selection's.
        selection_flops: operations of all selections of a run; mean over seeds.
        flops_share: their share of full selection's.
        audit_fraction: share of the pool that was audited, inside the budget.
        covered: share of certificates whose interval for recall holds the true one.
        loss: test loss after fine-tuning, mean over seeds; `loss_low` and `loss_high` its 95 % interval.
        note: why nothing could be drawn at this budget.
    """

    target: str
    policy: str
    budget_fraction: float | None
    replays: int = 0
    captured_influence: float | None = None
    captured_se: float | None = None
    captured_by_period: tuple[float, ...] = ()
    recall: float | None = None
    recall_se: float | None = None
    draws: float | None = None
    gradient_evaluations: float | None = None
    gradient_cost: float | None = None
    selection_flops: float | None = None
    flops_share: float | None = None
    audit_fraction: float | None = None
    covered: float | None = None
    loss: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    note: str | None = None


def summarise_settings(
    ref: ArtifactRef, settings: Sequence[Setting], trained: Sequence[Trained]
) -> list[SettingSummary]:
    """Return a line for every setting, in the order given.

    Args:
        ref: the artifact `comparison`.
        settings: the settings that were compared.
        trained: evaluations of adapters trained on their selections; none where nothing was trained.
    """
    replays, impossible = read_replays(ref), impossible_settings(ref)
    target = str(replays["target"][0])
    audit_fraction = float(read_manifest(ref)["audit_fraction"])
    lines: list[SettingSummary] = []
    for setting in settings:
        if setting in impossible:
            fields = setting.model_dump()
            lines.append(SettingSummary(target=target, note=impossible[setting], **fields))
            continue
        of_setting = pl.col("budget_fraction").eq_missing(pl.lit(setting.budget_fraction, pl.Float64))
        rows = replays.filter((pl.col("policy") == setting.policy) & of_setting)
        loss = _loss(target, [item.evaluation for item in trained if item.setting == setting])
        audit = audit_fraction if rows["covered"].count() else None
        lines.append(_line(setting, rows, loss).model_copy(update={"audit_fraction": audit}))
    return lines


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean, s / sqrt(n) with n - 1 in the variance; None for one value."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _line(setting: Setting, rows: pl.DataFrame, loss: EvalResult | None) -> SettingSummary:
    by_period = rows.group_by("period").agg(pl.col("captured_influence").mean()).sort("period")
    covered = rows["covered"].drop_nulls()
    return SettingSummary(
        target=str(rows["target"][0]),
        policy=setting.policy,
        budget_fraction=setting.budget_fraction,
        replays=len(rows),
        captured_influence=_mean(rows, "captured_influence"),
        captured_se=standard_error(rows["captured_influence"].to_list()),
        captured_by_period=tuple(by_period["captured_influence"].to_list()),
        recall=_mean(rows, "recall"),
        recall_se=standard_error(rows["recall"].to_list()),
        draws=_mean(rows, "draws"),
        gradient_evaluations=_mean(rows, "gradient_evaluations"),
        gradient_cost=_mean(rows, "gradient_cost"),
        selection_flops=_mean(rows, "selection_flops"),
        flops_share=_mean(rows, "flops_share"),
        covered=float(np.mean(covered.to_numpy())) if len(covered) else None,
        loss=None if loss is None else loss.value,
        loss_low=None if loss is None else loss.low,
        loss_high=None if loss is None else loss.high,
    )


def _mean(rows: pl.DataFrame, column: str) -> float:
    return float(np.mean(rows[column].to_numpy()))


def _loss(target: str, evaluations: Sequence[ArtifactRef]) -> EvalResult | None:
    """Return the loss of the test rows, each the mean over the adapters; None where there are none."""
    losses = [read_losses(evaluation) for evaluation in evaluations]
    if not losses or not len(losses[0]):
        return None
    return loss_result("", target, np.mean(losses, axis=0))
