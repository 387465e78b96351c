import json
import time

import polars as pl
import pytest

from clusterucb_core.errors import MissingArtifact, StaleArtifact, UnknownVersion
from clusterucb_core.store import open_catalog, pool_messages, pool_sample_ids, pool_version, record_pool
from clusterucb_core.store.statements import rows

HOSTILE = [
    "quote \" and ' end",
    "line\nbreak\r\n",
    "naïve 漢字 🙂 \u2028",
    "'); DROP TABLE samples; --",
    "back\\slash",
]


def test_the_first_version_adds_every_sample(con, add_pool):
    version = add_pool(con, ["a1", "a2", "b1"], bad_rows=2)
    assert (version.pool_version, version.parent_version, version.created) == (1, None, True)
    assert (version.n_samples, version.n_added, version.n_removed, version.n_quarantined) == (3, 3, 0, 2)


def test_a_changed_pool_is_counted_against_its_parent(con, add_pool):
    add_pool(con, ["a1", "a2", "b1"])
    version = add_pool(con, ["a2", "b1", "b2", "b3"])
    assert (version.pool_version, version.parent_version) == (2, 1)
    assert (version.n_samples, version.n_added, version.n_removed) == (4, 2, 1)


def test_an_unchanged_pool_gives_no_version(con, add_pool):
    first = add_pool(con, ["a1", "a2"])
    again = add_pool(con, ["a1", "a2"])
    assert again == first.model_copy(update={"created": False})
    assert rows(con, "SELECT count(*) FROM pools") == [(1,)]


def test_a_pool_that_goes_back_is_a_version_of_its_own(con, add_pool):
    for ids in (["a1"], ["a1", "a2"], ["a1"]):
        version = add_pool(con, ids)
    assert (version.pool_version, version.n_added, version.n_removed) == (3, 0, 1)


def test_a_sample_is_stored_once_with_its_first_version(con, add_pool):
    add_pool(con, ["a1", "a2"])
    add_pool(con, ["a2", "a3"])
    found = rows(con, "SELECT sample_id, first_pool_version FROM samples ORDER BY sample_id")
    assert found == [("a1", 1), ("a2", 1), ("a3", 2)]


def test_ids_of_a_version_are_sorted(con, add_pool):
    add_pool(con, ["b1", "a2", "a1"])
    add_pool(con, ["a1"])
    assert pool_sample_ids(con, 1) == ["a1", "a2", "b1"]
    assert pool_sample_ids(con, 2) == ["a1"]


def test_quarantine_belongs_to_its_version(con, add_pool):
    add_pool(con, ["a1"], bad_rows=1)
    add_pool(con, ["a2"], bad_rows=2)
    query = "SELECT pool_version, count(*), min(reason) FROM quarantine GROUP BY pool_version ORDER BY 1"
    assert rows(con, query) == [(1, 1, "bad_json"), (2, 2, "bad_json")]


def test_messages_come_in_the_order_asked_for(con, add_pool):
    add_pool(con, ["a1", "a2", "b1"])
    found = pool_messages(con, ["b1", "a1"])
    assert found.columns == ["sample_id", "source", "messages", "n_chars"]
    assert found["sample_id"].to_list() == ["b1", "a1"]
    assert json.loads(found["messages"][0])[0] == {"role": "user", "content": "b1"}


def test_messages_can_be_read_without_the_right_to_write(catalog_path, add_pool):
    with open_catalog(catalog_path) as con:
        add_pool(con, ["a1"])
    with open_catalog(catalog_path, read_only=True) as con:
        assert pool_messages(con, ["a1"])["source"].to_list() == ["a"]
        assert pool_messages(con, []).is_empty()


def test_messages_of_an_unknown_sample_are_an_error(con, add_pool):
    add_pool(con, ["a1"])
    with pytest.raises(ValueError, match="1 of 2 sample ids are in no pool version, the first 'zz'"):
        pool_messages(con, ["a1", "zz"])


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_comes_back_as_it_was(con, add_pool, text):
    name = f"a{text}"
    add_pool(con, [name])
    assert pool_sample_ids(con, 1) == [name]
    assert json.loads(pool_messages(con, [name])["messages"][0])[0]["content"] == name


def test_an_unknown_pool_version_lists_the_known(con, add_pool):
    with pytest.raises(UnknownVersion, match="any pool version; known: none"):
        pool_version(con)
    add_pool(con, ["a1"])
    with pytest.raises(UnknownVersion, match=r"pool version 7; known: \[1\]"):
        pool_version(con, 7)
    assert pool_version(con).pool_version == pool_version(con, 1).pool_version == 1


def test_an_absent_file_is_named(con, tmp_path):
    with pytest.raises(MissingArtifact, match=r"samples\.parquet is missing"):
        record_pool(
            con,
            samples_parquet=tmp_path / "samples.parquet",
            quarantine_parquet=tmp_path / "quarantine.parquet",
            digest="x",
        )


def test_a_sample_id_that_occurs_twice_leaves_nothing_behind(con, add_pool):
    with pytest.raises(StaleArtifact, match="sample id 'a1' twice"):
        add_pool(con, ["a1", "a2", "a1"])
    assert rows(con, "SELECT (SELECT count(*) FROM samples), (SELECT count(*) FROM pools)") == [(0, 0)]
    assert add_pool(con, ["a1"]).pool_version == 1


@pytest.mark.parametrize("folder", ["it's", "a[b]c", "st*r", "q?x", "{star,abc}"])
def test_a_folder_name_is_no_pattern(con, add_pool, tmp_path, folder):
    add_pool(con, ["a1"])
    for name, ids in ((folder, ["a1", "a2"]), ("star", ["b1"]), ("abc", ["b1"]), ("qax", ["b1"])):
        (tmp_path / name).mkdir()
        columns = {"sample_id": ids, "source": ["a"] * len(ids), "messages": ["[]"] * len(ids)}
        numbers = {"n_chars": [0] * len(ids), "path": [""] * len(ids), "row_number": [0] * len(ids)}
        pl.DataFrame(columns | numbers).write_parquet(tmp_path / name / "samples.parquet")
    record_pool(
        con,
        samples_parquet=tmp_path / folder / "samples.parquet",
        quarantine_parquet=tmp_path / "quarantine.parquet",
        digest="x",
    )
    assert pool_sample_ids(con, 2) == ["a1", "a2"]


@pytest.mark.slow
def test_four_hundred_thousand_samples_load_in_seconds(con, add_pool):
    ids = [f"a{number:031x}" for number in range(400_000)]
    began = time.monotonic()
    add_pool(con, ids, digest="one")
    add_pool(con, ids[1000:], digest="two")
    assert time.monotonic() - began < 60
    assert pool_version(con).n_removed == 1000
