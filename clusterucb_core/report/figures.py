"""The figures of a report, drawn from what the catalog holds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from clusterucb_core.records import FloatArray
from clusterucb_core.report.drawing import (
    GRID,
    INK,
    MUTED,
    PAPER,
    SERIES,
    as_label,
    as_svg,
    legend,
    new_figure,
    plain_axes,
)
from clusterucb_core.report.draws import DrawBin, running_kth_best, thinned_rewards
from clusterucb_core.report.pool_map import PoolMap

MOST_SOURCES, MOST_ARMS, MOST_DOTS = 14, 5, 1500
KINDS = {"cold_start": "cold start", "draw": "draw", "audit": "audit", "known": "known before"}
_ROW_INCHES = 0.3


def loss_figure(rows: Sequence[dict[str, Any]]) -> str:
    """Draw the test loss of each subject with its interval; `rows` have subject, value, low and high."""
    figure = new_figure(0.75 + _ROW_INCHES * len(rows))
    axes = figure.subplots()
    plain_axes(axes, grid="x")
    for place, row in enumerate(rows):
        colour = SERIES[0] if row["subject"] == "selection" else MUTED
        low, high = row["low"], row["high"]
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([row["value"]], [place], "o", color=colour, markersize=6.5)
    axes.set_yticks(range(len(rows)), labels=[as_label(row["subject"]) for row in rows])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("mean loss on the test rows, with 95 % intervals: lower is better")
    return as_svg(figure, "loss", label="Test loss of the selection and of what it is compared with")


def cost_figure(stages: Sequence[tuple[str, float]], full: float) -> str:
    """Draw the operations of a selection by stage above those of full selection."""
    figure = new_figure(1.75)
    axes = figure.subplots()
    plain_axes(axes, grid="x")
    left = 0.0
    for number, (stage, flops) in enumerate(stages):
        colour = SERIES[number % len(SERIES)]
        axes.barh(0, flops, left=left, color=colour, height=0.55, label=as_label(stage), edgecolor=PAPER)
        left += flops
    axes.barh(1, full, color=GRID, height=0.55)
    axes.set_yticks([0, 1], labels=["this selection", "full selection"])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(1.5, -0.5)
    axes.set_xlabel("floating-point operations")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.1e}"))
    legend(axes)
    return as_svg(
        figure, "cost", label="Operations of this selection by stage beside those of full selection"
    )


def sources_figure(rows: Sequence[dict[str, Any]]) -> str:
    """Draw each source's share of the selection beside its share of the pool."""
    shown = rows[:MOST_SOURCES]
    selected = sum(row["n_selected"] for row in rows) or 1
    pool = sum(row["n_pool"] for row in rows) or 1
    figure = new_figure(0.95 + _ROW_INCHES * len(shown))
    axes = figure.subplots()
    plain_axes(axes, grid="x")
    for place, row in enumerate(shown):
        ends = [row["n_pool"] / pool, row["n_selected"] / selected]
        axes.plot(ends, [place, place], color=GRID, linewidth=3, zorder=1)
        named = place == 0
        axes.plot(
            ends[0], place, "o", color=MUTED, markersize=6, label="share of the pool" if named else None
        )
        axes.plot(
            ends[1],
            place,
            "o",
            color=SERIES[0],
            markersize=7.5,
            label="share of the selection" if named else None,
        )
    axes.set_yticks(range(len(shown)), labels=[as_label(row["source"]) for row in shown])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(left=-0.012)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    legend(axes)
    return as_svg(figure, "sources", label="Share of each source in the selection and in the pool")


def rewards_figure(pulls: pl.DataFrame, k: int) -> str:
    """Draw the rewards in drawing order, and the running k-th best."""
    figure = new_figure(3.3)
    axes = figure.subplots()
    plain_axes(axes)
    thinned = thinned_rewards(pulls, most=MOST_DOTS)
    for number, (kind, name) in enumerate(KINDS.items()):
        found = thinned.filter(kind=kind)
        if len(found):
            axes.plot(
                found["step"],
                found["reward"],
                "o",
                color=SERIES[number],
                markersize=3.2,
                markeredgewidth=0,
                alpha=0.6,
                label=name,
            )
    steps, levels = running_kth_best(pulls, k)
    axes.plot(steps, levels, color=INK, linewidth=1.8, label="k-th best so far")
    axes.set_xlabel("draws")
    axes.set_ylabel("reward")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend(axes, columns=5)
    return as_svg(figure, "rewards", label="Rewards in drawing order, and the k-th best reward so far")


def bounds_figure(pulls: pl.DataFrame) -> str | None:
    """Draw what the arms that were drawn most promised over the draws; None where no draw had a bound."""
    bounded = pulls.filter(pl.col("bound").is_not_null() & pl.col("cluster").is_not_null())
    if bounded.is_empty():
        return None
    leading = bounded["cluster"].value_counts().sort(["count", "cluster"], descending=[True, False])
    figure = new_figure(3.1)
    axes = figure.subplots()
    plain_axes(axes)
    for number, cluster in enumerate(leading["cluster"].head(MOST_ARMS)):
        by_round = (
            bounded.filter(cluster=cluster)
            .group_by("round")
            .agg(pl.col("step").min(), pl.col("bound").max())
            .sort("step")
        )
        axes.plot(
            by_round["step"],
            by_round["bound"],
            color=SERIES[number],
            linewidth=1.6,
            marker="o",
            markersize=3,
            label=f"cluster {cluster}",
        )
    axes.set_xlabel("draws")
    axes.set_ylabel("best bound in the round")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend(axes, columns=5)
    return as_svg(figure, "bounds", label="Bounds of the clusters that were drawn most, over the draws")


def balance_figure(bins: Sequence[DrawBin]) -> str:
    """Draw what draws gave beside what was promised, and how many of them chance made."""
    figure = new_figure(3.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
    middles = [(item.first + item.last) / 2 for item in bins]
    for number, (values, name) in enumerate(
        (
            ([item.mean_bound for item in bins], "bound"),
            ([item.mean_arm for item in bins], "mean of the cluster before"),
            ([item.mean_reward for item in bins], "reward"),
        )
    ):
        known = np.array([np.nan if value is None else value for value in values])
        upper.plot(
            middles, known, color=SERIES[number], linewidth=1.7, marker="o", markersize=3.2, label=name
        )
    plain_axes(upper)
    upper.set_ylabel("mean of the draws")
    legend(upper)
    widths = [max(1.0, 0.9 * (item.last - item.first + 1)) for item in bins]
    bottom = np.zeros(len(bins))
    for number, (counts, name) in enumerate(
        (
            ([item.by_bound for item in bins], "by its bound"),
            ([item.by_chance for item in bins], "by chance"),
        )
    ):
        share = np.array(counts) / np.array([item.n for item in bins])
        lower.bar(
            middles, share, bottom=bottom, width=widths, color=(SERIES[0], SERIES[4])[number], label=name
        )
        bottom += share
    plain_axes(lower)
    lower.set_ylim(0, 1)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    lower.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    lower.set_xlabel("draws")
    lower.set_ylabel("chosen")
    lower.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend(lower)
    return as_svg(figure, "balance", label="What draws promised and gave, and the share that chance chose")


def map_figure(laid_out: PoolMap) -> str:
    """Draw the map of the pool with the selection on it."""
    figure = new_figure(4.8)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.set_axis_off()
    split = len(laid_out.places) - laid_out.n_chosen
    _dots(axes, laid_out.places[:split], colour=MUTED, alpha=0.35, size=3.0, label="not selected")
    _dots(axes, laid_out.places[split:], colour=SERIES[0], alpha=0.9, size=4.2, label="selected")
    axes.set_aspect("equal", adjustable="datalim")
    legend(axes)
    return as_svg(
        figure, "map", label="Map of the pool by gradient direction, with the selected samples on it"
    )


def _dots(axes: Any, places: FloatArray, *, colour: str, alpha: float, size: float, label: str) -> None:
    axes.plot(
        places[:, 0],
        places[:, 1],
        "o",
        color=colour,
        alpha=alpha,
        markersize=size,
        markeredgewidth=0,
        label=label,
    )
