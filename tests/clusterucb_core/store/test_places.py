import pytest

from clusterucb_core.store import (
    ExportRecord,
    artifact_roots,
    exports_holding,
    publish_selections,
    record_artifact_root,
    record_export,
)
from clusterucb_core.store.statements import rows


@pytest.fixture
def selections(con, add_pool, draft):
    """Version 1 selects a1 and a2, version 2 a3."""
    add_pool(con, ["a1", "a2", "a3"])
    publish_selections(con, [draft(["a1", "a2"]), draft(["a3"], run_id="run-2")])
    return con


def record(path, version=1, digest="d", **options):
    return ExportRecord(path=path, selection_version=version, format="jsonl", digest=digest, options=options)


def test_an_export_is_found_by_the_samples_of_its_selection(selections):
    for made in (record("/b"), record("/a"), record("/c", version=2)):
        record_export(selections, made)
    assert exports_holding(selections, ["a1", "a2"]) == [record("/a"), record("/b")]
    assert exports_holding(selections, ["a3"]) == [record("/c", version=2)]


def test_a_later_export_to_the_same_path_takes_the_place_of_the_earlier_one(selections):
    record_export(selections, record("/a"))
    record_export(selections, record("/a", version=2, digest="e"))
    assert rows(selections, "SELECT path, selection_version, digest FROM exports") == [("/a", 2, "e")]


def test_how_an_export_was_laid_out_is_kept(selections):
    record_export(selections, record("/a", order="random", trainers=["axolotl"]))
    (found,) = exports_holding(selections, ["a1"])
    assert found.options == {"order": "random", "trainers": ["axolotl"]}
    record_export(selections, record("/a"))
    assert exports_holding(selections, ["a1"])[0].options == {}


def test_artifact_roots_are_recorded_once(con):
    for path in ("/b", "/a", "/b"):
        record_artifact_root(con, path)
    assert artifact_roots(con) == ["/a", "/b"]
