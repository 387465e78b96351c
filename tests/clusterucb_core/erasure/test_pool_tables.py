import json
from pathlib import Path

import polars as pl

from clusterucb_core.artifacts import read_manifest
from clusterucb_core.erasure.pool_tables import erase_from_pool
from clusterucb_core.erasure.traces import traces_of
from clusterucb_core.pool.tables import read_sample_ids


def texts_of(pool, name):
    table = pl.read_parquet(Path(pool.path) / "samples.parquet")
    return json.loads(table.row(by_predicate=pl.col("sample_id") == name, named=True)["messages"])


def test_the_row_and_the_quarantined_copy_of_it_are_gone(pool):
    traces = traces_of([texts_of(pool, "a")])
    assert erase_from_pool(Path(pool.path), frozenset("a"), traces)
    assert read_sample_ids(pool) == ["b", "c"]
    quarantine = pl.read_parquet(Path(pool.path) / "quarantine.parquet")
    assert quarantine["raw"].to_list() == [None, "{"]
    assert quarantine["detail"].to_list() == [None, "pool.jsonl: no object"]
    assert quarantine["row_number"].to_list() == [4, 5]
    assert read_manifest(pool)["erased"] == ["a"]
    assert read_manifest(pool)["counts"] == {"n_samples": 3}


def test_a_repeat_and_a_pool_of_other_samples_change_nothing(pool):
    traces = traces_of([texts_of(pool, "b")])
    assert erase_from_pool(Path(pool.path), frozenset("b"), traces)
    before = (Path(pool.path) / "samples.parquet").read_bytes()
    assert not erase_from_pool(Path(pool.path), frozenset("bz"), traces)
    assert (Path(pool.path) / "samples.parquet").read_bytes() == before


def test_other_columns_and_types_stay(pool):
    path = Path(pool.path) / "samples.parquet"
    before = pl.read_parquet(path)
    erase_from_pool(Path(pool.path), frozenset("a"), traces_of([]))
    assert pl.read_parquet(path).equals(before.filter(pl.col("sample_id") != "a"))
    assert sorted(item.name for item in Path(pool.path).iterdir()) == [
        "manifest.json", "quarantine.parquet", "samples.parquet",
    ]  # fmt: skip
