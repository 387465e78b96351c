"""Charts as PNG files. Writes the file that it is told to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import ScaledTranslation

from clusterucb_core.stages.comparison_summary import SettingSummary

# Colours that stay apart for colour-blind readers (Okabe and Ito, 2008), each with a mark of its own.
LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
)
LEVELS = {"full": "--", "random": ":"}
INCHES, DOTS_PER_INCH = (8.5, 5.0), 150
# Policies cost nearly the same at one budget, so their marks are set beside one another.
APART_INCHES = 3 / 72
GREY = "#666666"


@dataclass(frozen=True)
class _Point:
    """One policy at one budget: share of full selection's operations, captured influence, standard error."""

    budget: float
    cost: float
    captured: float
    error: float


def comparison_chart(path: Path, lines: Sequence[SettingSummary], *, title: str) -> None:
    """Draw captured influence against the cost of a run, one line a policy with its standard errors.

    Args:
        path: the PNG file to write.
        lines: what the settings of a comparison came to; those without a figure are left out. Each target
            has a panel of its own.
        title: stands above the chart.
    """
    targets = list(dict.fromkeys(line.target for line in lines))
    width, height = INCHES
    figure = Figure((width * (1 + len(targets)) / 2, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    # looks go by the order of the lines, so that a policy keeps its own whatever its rank
    drawn = dict.fromkeys(line.policy for line in lines if line.policy not in LEVELS)
    looks = dict(zip(drawn, cycle(LOOKS), strict=False))
    keys: dict[str, ErrorbarContainer | Line2D] = {}
    for target, axes in zip(targets, panels, strict=True):
        keys |= _panel(axes, [line for line in lines if line.target == target], looks)
        if len(targets) > 1:
            axes.set_title(target, fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.supxlabel("cost of all selections of a run, share of full selection's operations", fontsize=10)
    panels[0].set_ylabel("captured influence (mean ± standard error)")
    figure.legend(handles=list(keys.values()), loc="outside right center", frameon=False, fontsize=9)
    # no version of the library in the file: the same figures give the same bytes
    figure.savefig(path, format="png", metadata={"Software": None})


def _panel(
    axes: Axes, lines: Sequence[SettingSummary], looks: Mapping[str, tuple[str, str]]
) -> dict[str, ErrorbarContainer | Line2D]:
    """Draw what the settings of one target came to, and return the key of each line by its name."""
    policies = _by_policy(lines)
    levels = {line.policy: line.captured_influence for line in lines if line.policy in LEVELS}
    keys = _level(axes, levels.get("full"), "full")
    for number, (policy, points) in enumerate(policies.items()):
        aside = number - (len(policies) - 1) / 2
        keys[policy] = _curve(axes, policy, points, looks=looks[policy], aside=aside)
    keys |= _level(axes, levels.get("random"), "random")
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.margins(x=0.08)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)
    _mark_budgets(axes, [point for points in policies.values() for point in points])
    return keys


def _by_policy(lines: Sequence[SettingSummary]) -> dict[str, list[_Point]]:
    """Return the points of each policy, the policies from the highest last point to the lowest."""
    found: dict[str, list[_Point]] = {}
    for line in lines:
        if line.budget_fraction is None or line.captured_influence is None or line.flops_share is None:
            continue
        error = line.captured_se or 0.0
        point = _Point(line.budget_fraction, line.flops_share, line.captured_influence, error)
        found.setdefault(line.policy, []).append(point)
    return dict(sorted(found.items(), key=lambda item: -item[1][-1].captured))


def _curve(
    axes: Axes, policy: str, points: Sequence[_Point], *, looks: tuple[str, str], aside: float
) -> ErrorbarContainer:
    colour, mark = looks
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes are part of a figure"
    shift = ScaledTranslation(aside * APART_INCHES, 0.0, figure.dpi_scale_trans)
    # what is set aside is not seen by the axes that choose their limits
    ends = [(point.cost, point.captured + sign * point.error) for point in points for sign in (-1, 1)]
    axes.update_datalim(ends)
    curve = axes.errorbar(
        [point.cost for point in points],
        [point.captured for point in points],
        yerr=[point.error for point in points],
        label=policy,
        color=colour,
        marker=mark,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.5,
        elinewidth=1.0,
        capsize=2.5,
        transform=axes.transData + shift,
    )
    axes.autoscale_view()
    return curve


def _level(axes: Axes, captured: float | None, policy: str) -> dict[str, ErrorbarContainer | Line2D]:
    """Draw a selection without a budget as a level across the chart, and return its key by its name."""
    if captured is None:
        return {}
    style = LEVELS[policy]
    line = axes.axhline(captured, color=GREY, linestyle=style, linewidth=1.2, label=policy, zorder=1)
    return {policy: line}


def _mark_budgets(axes: Axes, points: Sequence[_Point]) -> None:
    """Name the budgets along the upper edge, each above the mean cost of its points."""
    budgets = sorted({point.budget for point in points})
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(
        [fmean(point.cost for point in points if point.budget == budget) for budget in budgets],
        labels=[f"{100 * budget:g} %" for budget in budgets],
        fontsize=8,
        color=GREY,
    )
    upper.set_xlabel("budget of one selection, share of the pool", fontsize=8, color=GREY)
    upper.tick_params(color=GREY)
