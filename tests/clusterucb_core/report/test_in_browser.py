"""A report full of hostile text in a browser: wide and narrow, light and dark, by the rules of axe-core."""

import numpy as np
import pytest

from clusterucb_core.report.content import read_content
from clusterucb_core.report.page import render_page
from clusterucb_core.report.pool_map import PoolMap

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(kept_catalog, tmp_path_factory):
    places = np.random.default_rng(0).normal(size=(60, 2))
    content = read_content(kept_catalog, 2, texts=True)
    text = render_page(content, laid_out=PoolMap(places, n_chosen=8, n_known=60), digests={})
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_a_hostile_report_opens_offline_without_a_message_and_is_accessible(
    page, report_page, tmp_path, width, scheme
):
    seen = report_page.look_at(page, tmp_path / "shot.png", width=width, scheme=scheme)
    assert (seen.messages, seen.requests) == ([], [])
    assert [found for found in seen.violations if found.startswith(("serious", "critical"))] == []
    assert seen.scroll_width == width, "nothing sticks out of the page"
    assert "<script>alert(1)</script>" in seen.shown
    assert "</style><h1>big" in seen.shown
