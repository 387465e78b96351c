import struct

import pytest

from clusterucb_core.charts import DOTS_PER_INCH, INCHES, comparison_chart
from clusterucb_core.stages.comparison_summary import SettingSummary


def line(policy, budget=None, captured=None, **fields):
    fields |= {"captured_influence": captured, "flops_share": 0.3 + (budget or 0.0)}
    return SettingSummary(target="sums", policy=policy, budget_fraction=budget, **fields)


LINES = [
    *(line("linucb", budget, 0.9 + budget / 10, captured_se=0.01) for budget in (0.05, 0.1, 0.2)),
    line("ucb_beta", 0.05, note="below the cold start"),
    *(line("ucb_beta", budget, 3 * budget, captured_se=0.05) for budget in (0.1, 0.2)),
    line("random", captured=0.02),
    line("full", captured=1.0),
]


def test_the_chart_is_a_png_of_the_size_asked_for(tmp_path):
    comparison_chart(tmp_path / "a.png", LINES, title="sums")
    content = (tmp_path / "a.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == tuple(round(DOTS_PER_INCH * inches) for inches in INCHES)
    assert len(content) > 20_000


def test_the_same_figures_give_the_same_bytes_and_others_do_not(tmp_path):
    for name, lines in (("a", LINES), ("b", LINES), ("c", LINES[:-1])):
        comparison_chart(tmp_path / name, lines, title="sums")
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("lines", [LINES[-2:], LINES[:1], LINES[3:4]])
def test_little_to_show_is_shown(tmp_path, lines):
    comparison_chart(tmp_path / "a.png", lines, title="sums")
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_each_target_has_a_panel_of_its_own(tmp_path):
    both = [*LINES, *(item.model_copy(update={"target": "dates"}) for item in LINES)]
    comparison_chart(tmp_path / "a.png", both, title="sums, dates")
    width, height = struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24])
    assert (width, height) == (round(1.5 * INCHES[0] * DOTS_PER_INCH), round(INCHES[1] * DOTS_PER_INCH))
