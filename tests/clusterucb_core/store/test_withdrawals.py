import json
import shutil

import polars as pl
import pytest

from clusterucb_core.errors import UnknownSample
from clusterucb_core.store import (
    open_catalog,
    record_pool,
    sample_origins,
    withdraw_samples,
    withdrawn_ids,
    withdrawn_in,
)
from clusterucb_core.store.statements import rows, run


def test_withdrawn_samples_are_recorded_with_time_and_reason(con, add_pool):
    add_pool(con, ["a1", "a2", "b1"])
    assert withdraw_samples(con, ["b1", "a1", "b1"], reason="asked for") == ["a1", "b1"]
    found = rows(con, 'SELECT sample_id, reason, "at" IS NOT NULL FROM withdrawals ORDER BY sample_id')
    assert found == [("a1", "asked for", True), ("b1", "asked for", True)]
    assert withdrawn_in(con) == {"a1", "b1"}


def test_a_repeat_keeps_the_first_reason(con, add_pool):
    add_pool(con, ["a1"])
    for reason in ("first", "second"):
        withdraw_samples(con, ["a1"], reason=reason)
    assert rows(con, "SELECT sample_id, reason FROM withdrawals") == [("a1", "first")]


def test_every_sample_with_the_same_messages_is_withdrawn_with_it(con, tmp_path):
    texts = {"one": "same", "two": "same", "three": "other"}
    pl.DataFrame(
        {
            "sample_id": list(texts),
            "source": ["s"] * 3,
            "messages": [json.dumps([{"role": "user", "content": text}]) for text in texts.values()],
            "n_chars": [4] * 3,
            "path": ["a.jsonl"] * 3,
            "row_number": [1, 2, 3],
        }
    ).write_parquet(tmp_path / "samples.parquet")
    columns = {"source": [""], "row_number": [0], "reason": [""], "detail": [""], "raw": [""]}
    pl.DataFrame(columns).clear().write_parquet(tmp_path / "quarantine.parquet")
    record_pool(
        con,
        samples_parquet=tmp_path / "samples.parquet",
        quarantine_parquet=tmp_path / "quarantine.parquet",
        digest="d",
    )
    assert withdraw_samples(con, ["two"], reason="asked for") == ["one", "two"]


def test_erased_samples_are_no_copies_of_each_other(con, add_pool):
    add_pool(con, ["a1", "a2"])
    run(con, "UPDATE samples SET messages = NULL")
    assert withdraw_samples(con, ["a1"], reason="asked for") == ["a1"]


@pytest.mark.parametrize(
    ("wrong", "near"), [("a13", "near it: a1"), ("b", "near it: b1"), ("x" * 32, "none")]
)
def test_an_unknown_id_is_refused_with_the_near_ones_and_nothing_is_withdrawn(con, add_pool, wrong, near):
    add_pool(con, ["a1", "b1"])
    with pytest.raises(UnknownSample, match=rf"1 of 2 sample ids .* the first '{wrong}' \({near}"):
        withdraw_samples(con, ["a1", wrong], reason="asked for")
    assert withdrawn_in(con) == frozenset()


def test_nothing_is_withdrawn_where_there_is_no_catalog_or_an_older_one(catalog_path, empty_catalog):
    assert withdrawn_ids(catalog_path) == frozenset()
    catalog_path.parent.mkdir()
    shutil.copy(empty_catalog, catalog_path)
    with open_catalog(catalog_path) as con:
        run(con, "DROP TABLE withdrawals")
        run(con, "UPDATE catalog_schema SET schema_version = 3")
    assert withdrawn_ids(catalog_path) == frozenset()


def test_withdrawn_ids_are_read_from_a_catalog_file(catalog_path, add_pool):
    with open_catalog(catalog_path) as con:
        add_pool(con, ["a1", "a2"])
        withdraw_samples(con, ["a2"], reason="asked for")
    assert withdrawn_ids(catalog_path) == {"a2"}


def test_origins_say_where_a_sample_came_from_and_what_it_says(con, add_pool):
    add_pool(con, ["a1", "a2"])
    run(con, "UPDATE samples SET messages = NULL WHERE sample_id = 'a2'")
    found = sample_origins(con, ["a2", "a1"]).to_dicts()
    assert [(row["sample_id"], row["path"], row["row_number"]) for row in found] == [
        ("a1", "data/a.jsonl", 0),
        ("a2", "data/a.jsonl", 1),
    ]
    assert "answer to a1" in found[0]["messages"]
    assert found[1]["messages"] is None
