import dataclasses
import re

import polars as pl
import pytest

from clusterucb_core.store import publish_selections
from clusterucb_core.store.statements import rows

TABLES = ("selections", "selection_samples", "pulls", "exclusions")


def assert_refused(con, drafts, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        publish_selections(con, drafts)
    for table in TABLES:
        assert rows(con, f"SELECT count(*) FROM {table}") == [(0,)]


@pytest.fixture(autouse=True)
def _pool(con, add_pool):
    add_pool(con, ["a1", "a2", "b1"])


def test_ranks_with_a_gap_are_refused(con, draft):
    bad = draft()
    gap = bad.samples.with_columns(pl.Series("rank", [1, 3]))
    assert_refused(
        con, [dataclasses.replace(bad, samples=gap)], "ranks must be 1..2 without gaps, found 3 as 2"
    )


def test_ranks_from_zero_are_refused(con, draft):
    bad = draft()
    zero = bad.samples.with_columns(pl.Series("rank", [0, 1]))
    assert_refused(con, [dataclasses.replace(bad, samples=zero)], "ranks must be 1..2")


def test_a_sample_selected_twice_is_refused(con, draft):
    assert_refused(con, [draft(["a1", "a1"])], "sample_id 'a1' of samples is empty or occurs twice")


@pytest.mark.parametrize("part", ["samples", "pulls"])
def test_a_sample_outside_the_pool_version_is_refused(con, draft, part):
    good, bad = draft(), draft(["a1", "zz"])
    mixed = dataclasses.replace(good, **{part: getattr(bad, part)})
    assert_refused(con, [mixed], f"1 rows of {part} are not in pool version 1, the first 'zz'")


def test_an_unknown_pool_version_is_refused(con, draft):
    assert_refused(con, [draft(pool_version=9)], "there is no pool version 9")


def test_one_bad_draft_stops_all(con, draft):
    assert_refused(con, [draft(), draft(["zz"], period=2)], "period 2: 1 rows of samples")


def test_one_key_twice_is_refused(con, draft):
    assert_refused(con, [draft(), draft(["b1"])], "selection key 'run-1/gsm8k/1' is that of several drafts")


def test_a_missing_column_is_named(con, draft):
    bad = draft()
    assert_refused(
        con, [dataclasses.replace(bad, pulls=bad.pulls.drop("kind"))], "pulls lack the columns ['kind']"
    )


def test_a_step_that_occurs_twice_is_refused(con, draft):
    bad = draft()
    steps = bad.pulls.with_columns(step=pl.lit(4))
    assert_refused(con, [dataclasses.replace(bad, pulls=steps)], "step 4 of pulls is empty or occurs twice")


def test_an_unknown_kind_of_pull_lists_the_known(con, draft):
    bad = draft()
    kinds = bad.pulls.with_columns(kind=pl.lit("guess"))
    assert_refused(
        con, [dataclasses.replace(bad, pulls=kinds)], "'guess' is unknown; known: cold_start, draw"
    )


def test_a_value_that_json_cannot_hold_is_refused(con, draft):
    assert_refused(con, [draft(config={"beta": float("nan")})], "JSON")
