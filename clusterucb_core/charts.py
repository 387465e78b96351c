"""Charts as PNG files. Writes the file that it is told to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

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
INCHES, DOTS_PER_INCH = (8.0, 5.0), 150


@dataclass(frozen=True)
class _Point:
    """One setting: its share of full selection's operations, captured influence and its standard error."""

    cost: float
    captured: float
    error: float


def comparison_chart(path: Path, lines: Sequence[SettingSummary], *, title: str) -> None:
    """Draw captured influence against the cost of a run, one line a policy with its standard errors.

    Args:
        path: the PNG file to write.
        lines: what the settings of a comparison came to; those without a figure are left out.
        title: stands above the chart.
    """
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (policy, points) in enumerate(_by_policy(lines).items()):
        colour, mark = LOOKS[number % len(LOOKS)]
        axes.errorbar(
            [point.cost for point in points],
            [point.captured for point in points],
            yerr=[point.error for point in points],
            label=policy,
            color=colour,
            marker=mark,
            markersize=5.5,
            linewidth=1.6,
            capsize=3,
        )
    for line in lines:
        if line.policy in LEVELS and line.captured_influence is not None:
            _level(axes, line.captured_influence, line.policy)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("cost of all selections of a run, share of full selection's operations")
    axes.set_ylabel("captured influence")
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    axes.set_xlim(left=0.0)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, format="png", metadata={"Software": None})


def _by_policy(lines: Sequence[SettingSummary]) -> dict[str, list[_Point]]:
    """Return the points of each policy, the policies from the highest last point to the lowest."""
    found: dict[str, list[_Point]] = {}
    for line in lines:
        if line.policy in LEVELS or line.captured_influence is None or line.flops_share is None:
            continue
        point = _Point(line.flops_share, line.captured_influence, line.captured_se or 0.0)
        found.setdefault(line.policy, []).append(point)
    return dict(sorted(found.items(), key=lambda item: -item[1][-1].captured))


def _level(axes: Axes, captured: float, policy: str) -> None:
    """Draw a selection without a budget as a level across the chart."""
    axes.axhline(captured, color="#666666", linestyle=LEVELS[policy], linewidth=1.2, label=policy, zorder=1)
