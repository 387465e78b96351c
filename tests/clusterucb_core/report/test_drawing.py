import pytest

from clusterucb_core.report.drawing import INK, SERIES, as_label, as_svg, new_figure, plain_axes


def drawing(colour=INK, text="text"):
    figure = new_figure(1.5)
    axes = figure.subplots()
    plain_axes(axes)
    axes.plot([0, 1], [0, 1], color=colour)
    axes.set_title(text)
    return figure


def test_colours_become_variables_of_the_page():
    svg = as_svg(drawing(SERIES[2]), "a", label="line")
    assert "stroke: var(--series-2)" in svg


def test_a_colour_that_is_not_the_pages_is_refused():
    with pytest.raises(ValueError, match="#ff0000"):
        as_svg(drawing("#ff0000"), "a", label="line")


def test_names_and_labels_are_escaped():
    svg = as_svg(drawing(text=as_label("<b>$x$ & y")), "a", label='a "<b>"')
    assert "&lt;b&gt;$x$ &amp; y" in svg
    assert 'aria-label="a &quot;&lt;b>&quot;"' in svg


def test_ids_begin_with_the_name_of_the_drawing():
    assert 'id="one-figure_1"' in as_svg(drawing(), "one", label="line")


def test_a_glyph_that_the_layout_lacks_is_left_to_the_browser():
    assert "漢字" in as_svg(drawing(text="漢字"), "a", label="line")


@pytest.mark.parametrize(
    ("text", "label"), [("a" * 40, "a" * 27 + "…"), ("two\nlines\x1b", "two lines"), ("$", r"\$")]
)
def test_labels_are_one_short_line(text, label):
    assert as_label(text) == label
