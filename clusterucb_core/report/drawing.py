"""Matplotlib figures as SVG with the colours of the page: one drawing serves light and dark."""

import io
import re
import warnings

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins, each of which becomes a variable of the page's style; no drawing may hold another colour.
INK, MUTED, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = tuple(f"#00001{number}" for number in range(7))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}
_WIDTH_INCHES = 7.2
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
# what would hold outside of the drawing too; the page's style says the same
_OUTER = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_SIZE = re.compile(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg [^>]*?)height="[^"]*" width="[^"]*"')
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")


def new_figure(height: float) -> Figure:
    """Return an empty figure of a page's width and the given height in inches."""
    figure = Figure((_WIDTH_INCHES, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    return figure


def plain_axes(axes: Axes, *, grid: str = "y") -> None:
    """Give axes the page's look: no frame but the lower one, a faint grid, muted ticks."""
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, labelsize=9, length=0)
    axes.grid(axis=grid, color=GRID, linewidth=0.7)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(MUTED)
        label.set_fontsize(9.5)


def as_label(text: str, *, most: int = 28) -> str:
    """Return a text of at most so many characters that is drawn as it is: a dollar begins no formula."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (line if len(line) <= most else f"{line[: most - 1]}…").replace("$", r"\$")


def legend(axes: Axes, *, columns: int = 4) -> None:
    """Put the key of a drawing above it."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        borderaxespad=0.2,
        handletextpad=0.5,
        columnspacing=1.4,
    )


def as_svg(figure: Figure, name: str, *, label: str) -> str:
    """Return a figure as an SVG element for a page.

    Args:
        figure: the drawing; its colours are those of this module.
        name: begins every id in it, so that drawings on one page keep apart.
        label: says in a sentence what is seen, for who cannot see it.

    Raises:
        ValueError: the drawing holds a colour that is not the page's.
    """
    written = io.StringIO()
    # text stays text; ids come from the name, so that the same figures give the same bytes
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # what the layout's own font lacks is drawn by the browser, in the page's
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = _OUTER.sub("", _HEAD.sub("", written.getvalue()))
    text = _SIZE.sub(r"\1\2", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]+", "font-family: inherit", text)
    text = _COLOUR.sub(_variable, text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{_attribute(label)}" ', 1).strip()


def _variable(found: re.Match[str]) -> str:
    colour = found.group()
    if colour not in _VARIABLES:
        raise ValueError(f"a drawing holds the colour {colour}; use those of this module")
    return f"var(--{_VARIABLES[colour]})"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
