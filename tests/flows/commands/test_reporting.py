import json


def test_report_writes_a_page_named_after_the_version(call, catalog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = call("report", "latest")
    assert outcome.code == 0
    assert outcome.out.startswith("report on selection version 2 written to selection-2.html (")
    assert "<title>Selection 2 for " in (tmp_path / "selection-2.html").read_text(encoding="utf-8")


def test_report_as_json_says_where(call, catalog, tmp_path):
    out = tmp_path / "pages" / "one.html"
    shown = json.loads(call("report", "1", "--out", out, "--json").out)
    assert shown == {"path": str(out), "n_bytes": out.stat().st_size, "version": 1}


def test_a_report_on_an_unknown_version_lists_the_known_ones(call, catalog, tmp_path):
    outcome = call("report", "9", "--out", tmp_path / "r.html")
    assert outcome.code != 0
    assert "no selection version 9; known versions: 1" in outcome.err
    assert not (tmp_path / "r.html").exists()
