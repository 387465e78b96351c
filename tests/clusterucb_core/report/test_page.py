import json
import re

import duckdb
import pytest

from clusterucb_core.report.content import read_content
from clusterucb_core.report.page import render_page
from clusterucb_core.store import open_catalog, withdraw_samples

LONG = json.dumps([{"role": "user", "content": "x" * 5000}, {"role": "assistant", "content": "y"}])


def page_of(catalog, version=2, *, texts=True, laid_out="no features"):
    return render_page(read_content(catalog, version, texts=texts), laid_out=laid_out, digests={"model": "m"})


@pytest.fixture(scope="module")
def pages(kept_catalog):
    """The page of each version."""
    return {version: page_of(kept_catalog, version) for version in (1, 2)}


@pytest.fixture(scope="module")
def text(pages):
    return pages[2]


@pytest.mark.parametrize("version", [1, 2])
def test_every_number_is_the_catalogs(kept_catalog, pages, report_page, version):
    page = report_page.ReportPage(pages[version])
    with duckdb.connect(kept_catalog, read_only=True) as con:
        for field, key, exact, shown in page.numbers:
            wanted = report_page.expected(con, version, field, key)
            assert float(exact) == pytest.approx(wanted, rel=1e-9, abs=1e-12), (field, key)
            value, half = report_page.shown_value(shown)
            assert abs(value - wanted) <= half * 1.001, (field, key, shown)
    assert len({field for field, *_ in page.numbers}) > (20 if version == 1 else 35)


def test_no_number_stands_in_the_text_without_saying_where_it_is_from(text, report_page):
    page = report_page.ReportPage(text)
    assert report_page.stray_digits(page) == []


def test_hostile_text_stays_text(text, report_page):
    page = report_page.ReportPage(text)
    assert not {"script", "img", "iframe", "link", "h1big"} & set(page.tags)
    assert page.tags.count("h1") == page.tags.count("style") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;/style&gt;&lt;h1&gt;big" in text
    assert "{{ 7 * 7 }}" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    text.encode("utf-8")


def test_a_source_with_a_formula_in_its_name_is_drawn_as_it_is(text):
    svg = re.search(r'<svg[^>]*aria-label="Share of each source.*?</svg>', text, re.DOTALL).group()
    assert '&lt;b&gt;&amp;"$x$</text>' in svg


def test_nothing_is_loaded_and_nothing_may_run(text):
    assert "default-src 'none'" in text
    assert not re.findall(r'(?:src|href)="(?!#)', text.replace("&#34;", ""))
    assert not re.findall(r"url\((?!#)", text)


def test_colours_come_from_the_page_so_that_drawings_suit_light_and_dark(text):
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert "var(--" in svg
        assert not re.search(r"(?:fill|stroke): #", svg)


def test_ids_are_unique_and_references_are_kept(text):
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in wanted} <= set(ids)


def test_a_report_without_texts_holds_none(kept_catalog):
    text = page_of(kept_catalog, texts=False)
    assert "alert(1)" not in text
    assert "answer" not in text
    assert "text left out" in text


def test_withdrawn_samples_are_shown_without_text(catalog):
    best = read_content(catalog, 2, texts=True).best[0]
    with open_catalog(catalog) as con:
        withdraw_samples(con, [best.sample_id], reason="ticket")
    again = read_content(catalog, 2, texts=True)
    assert [sample.sample_id for sample in again.best if sample.turns is None] == [best.sample_id]


def test_the_first_selection_of_a_target_has_no_predecessor(kept_catalog, pages):
    assert "This is the first selection for sums &amp; &lt;b&gt;" in pages[1]
    assert read_content(kept_catalog, 2, texts=False).previous.selection_version == 1


def test_a_page_warns_of_chance_and_tells_what_is_missing_of_a_text(catalog, text):
    told = ("<strong>Warning.</strong>", "cut; an export has the whole text", "erased or withdrawn")
    best = [sample.sample_id for sample in read_content(catalog, 2, texts=True).best]
    with duckdb.connect(catalog) as con:
        con.execute("UPDATE selections SET separation_p = 0.4 WHERE selection_version = 2")
        con.execute("UPDATE samples SET messages = NULL WHERE sample_id = ?", [best[0]])
        con.execute("UPDATE samples SET messages = ? WHERE sample_id = ?", [LONG, best[1]])
    changed = page_of(catalog)
    assert all(words in changed and words not in text for words in told)


def test_a_difference_speaks_for_a_side_only_where_its_interval_holds_no_zero(text):
    table = text[text.index("This selection less each baseline") :]
    told = re.findall(r"</td><td class=\"text\">(the selection|the baseline|neither)</td>", table)
    assert told == ["neither", "the selection", "the selection"]


def test_the_configuration_and_the_digests_are_told(text):
    assert "base: models/&lt;i&gt;" in text
    for told in ("key of run-2", "flow-1", "<code>m</code>"):
        assert told in text
    assert "clusterucb export 2 selected.jsonl" in text


def test_same_catalog_same_bytes(kept_catalog, text):
    assert page_of(kept_catalog) == text


def test_long_texts_are_cut_and_say_so(catalog):
    best = read_content(catalog, 2, texts=True).best[0].sample_id
    with duckdb.connect(catalog) as con:
        con.execute("UPDATE samples SET messages = ? WHERE sample_id = ?", [LONG, best])
    shown = read_content(catalog, 2, texts=True).best[0]
    assert shown.cut
    assert [len(text) for _, text in shown.turns] == [1200, 1]
