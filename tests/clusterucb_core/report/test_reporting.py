import pytest

from clusterucb_core.errors import InvalidConfig, UnknownVersion
from clusterucb_core.report import renew_report, write_report
from clusterucb_core.store import exports_holding, open_catalog, withdraw_samples
from clusterucb_core.workspace import Workspace


@pytest.fixture
def workspace(catalog):
    return Workspace(home=str(catalog.parent))


def record_of(workspace, sample_id):
    with open_catalog(workspace.catalog, read_only=True) as con:
        return exports_holding(con, [sample_id])


def test_a_report_is_written_and_recorded(workspace, tmp_path):
    out = tmp_path / "pages" / "report.html"
    result = write_report(workspace, 2, out)
    assert (result.version, result.n_bytes) == (2, out.stat().st_size)
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    (record,) = record_of(workspace, "s10")
    assert (record.path, record.format, record.selection_version) == (str(out), "report", 2)
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_without_a_trail_a_report_says_why_it_has_no_map(workspace, tmp_path):
    write_report(workspace, None, tmp_path / "r.html")
    assert "No map: run run-2 has left no trail" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_renewed_report_has_lost_a_withdrawn_text(workspace, tmp_path, catalog):
    out = tmp_path / "r.html"
    write_report(workspace, 2, out)
    with open_catalog(catalog, read_only=True) as con:
        lowest = con.execute(
            "SELECT sample_id FROM pulls WHERE selection_version = 2 ORDER BY reward LIMIT 1"
        ).fetchone()[0]
    answer = f"answer {int(lowest[1:])}<"
    assert answer in out.read_text(encoding="utf-8")
    with open_catalog(catalog) as con:
        withdraw_samples(con, [lowest], reason="ticket")
    # it was drawn, not selected: an export does not hold it, but the report shows it
    (record,) = record_of(workspace, lowest)
    assert renew_report(workspace, record) == "rewritten"
    assert answer not in out.read_text(encoding="utf-8")


def test_a_report_that_somebody_changed_is_left_as_it_is(workspace, tmp_path):
    out = tmp_path / "r.html"
    write_report(workspace, 2, out)
    (record,) = record_of(workspace, "s10")
    out.write_text("mine", encoding="utf-8")
    assert renew_report(workspace, record) == "changed"
    assert out.read_text(encoding="utf-8") == "mine"
    out.unlink()
    assert renew_report(workspace, record) == "gone"


def test_a_folder_or_an_unknown_version_is_refused_and_nothing_is_left(workspace, tmp_path):
    with pytest.raises(InvalidConfig, match="is a folder; name the file"):
        write_report(workspace, 2, tmp_path)
    with pytest.raises(UnknownVersion, match=r"known versions: 1 .*, 2"):
        write_report(workspace, 7, tmp_path / "x" / "r.html")
    assert not (tmp_path / "x").exists()
