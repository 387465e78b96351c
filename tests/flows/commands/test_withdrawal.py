import json

import pytest


def tables(catalog):
    from clusterucb_core.store import open_catalog

    with open_catalog(catalog, read_only=True) as con:
        withdrawn = con.execute("SELECT sample_id, reason FROM withdrawals ORDER BY sample_id").fetchall()
        erased = con.execute("SELECT sample_id, reason FROM erasures ORDER BY sample_id").fetchall()
        return withdrawn, erased


def test_samples_are_withdrawn_and_nothing_is_erased_before_that_is_asked_for(call, catalog):
    outcome = call("withdraw", "s02", "s03", "--reason", "ticket 7")
    assert outcome.code == 0
    assert outcome.out == "2 samples withdrawn; the next ingest leaves them out\n"
    assert tables(catalog) == ([("s02", "ticket 7"), ("s03", "ticket 7")], [])
    assert b"question 3" in catalog.read_bytes()


def test_ids_may_come_from_a_file(call, catalog, tmp_path):
    (tmp_path / "ids.txt").write_text("s01\n\ns02\n")
    shown = json.loads(call("withdraw", "s02", "--from", tmp_path / "ids.txt", "--reason", "r", "--json").out)
    assert shown == {"withdrawn": ["s01", "s02"], "named": ["s01", "s02"], "erasure": None}


def test_erasing_tells_what_was_done_and_what_is_left_to_the_user(call, catalog, tmp_path):
    assert call("export", "1", tmp_path / "out.jsonl").code == 0
    outcome = call("withdraw", "s02", "--reason", "ticket 7", "--erase")
    assert outcome.code == 0
    facts = {line[:40].strip(): line[40:].strip() for line in outcome.out.splitlines()}
    assert facts["catalog rows without their text now"] == "1"
    assert facts["exports rewritten"] == "1"
    assert "source files are yours" in outcome.out
    assert ["pool.jsonl", "3", "sums", "s02"] in [line.split() for line in outcome.out.splitlines()]
    assert tables(catalog) == ([("s02", "ticket 7")], [("s02", "ticket 7")])
    assert b"question 2" not in catalog.read_bytes()
    assert "question 2" not in (tmp_path / "out.jsonl").read_text()


def test_samples_withdrawn_earlier_are_erased_by_the_same_command(call, catalog, tmp_path):
    (tmp_path / "changed.jsonl").write_text("")
    assert call("export", "1", tmp_path / "changed.jsonl").code == 0
    (tmp_path / "changed.jsonl").write_text("mine")
    call("withdraw", "s02", "--reason", "first")
    outcome = call("withdraw", "s02", "--reason", "second", "--erase", "--json")
    shown = json.loads(outcome.out)["erasure"]
    assert shown["sample_ids"] == ["s02"]
    assert shown["exports"]["changed"] == [str(tmp_path / "changed.jsonl")]
    assert tables(catalog) == ([("s02", "first")], [("s02", "second")])


def test_an_erased_sample_is_shown_without_text_and_not_exported(call, catalog, tmp_path):
    call("withdraw", "s02", "--reason", "r", "--erase")
    samples = json.loads(call("show", "2", "--json").out)["samples"]
    assert (samples[0]["sample_id"], samples[0]["messages"]) == ("s02", None)
    assert call("show", "2").code == 0
    outcome = call("export", "2", tmp_path / "out.jsonl")
    assert outcome.out.startswith("2 samples of selection version 2")
    assert "1 erased samples of version 2 are left out" in outcome.err


def test_an_unknown_id_fails_and_the_near_ones_are_named(call, catalog):
    outcome = call("withdraw", "s0x", "--reason", "r")
    assert outcome.code == 1
    assert "the first 's0x' (near it: s00, s01, s02)" in outcome.err
    assert tables(catalog) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reason", "r"], "no sample is named"),
        (["s01"], "--reason"),
        (["s01", "--reason", " "], "--reason is empty"),
        (["--from", "absent.txt", "--reason", "r"], "absent.txt cannot be read"),
    ],
)
def test_bad_usage_says_what_to_give(call, catalog, arguments, said):
    outcome = call("withdraw", *arguments)
    assert outcome.code == 2
    assert said in outcome.err


def test_without_a_catalog_there_is_nothing_to_withdraw(call, home):
    outcome = call("withdraw", "s01", "--reason", "r")
    assert outcome.code == 1
    assert "run `clusterucb run` first" in outcome.err
    assert not home.exists()


def test_the_next_ingest_leaves_withdrawn_samples_out_and_counts_them(call, config_file, home):
    from clusterucb_core.store import open_catalog

    assert json.loads(call("ingest", config_file, "--json").out)["n_samples"] == 200
    with open_catalog(home / "catalog.duckdb", read_only=True) as con:
        ((sample,),) = con.execute("SELECT sample_id FROM samples WHERE row_number = 1").fetchall()
    assert call("withdraw", sample, "--reason", "r").code == 0
    shown = json.loads(call("ingest", config_file, "--json").out)
    assert (shown["pool_version"], shown["n_samples"], shown["n_removed"]) == (2, 199, 1)
    assert (shown["counts"]["withdrawn"], shown["counts"]["duplicates"]) == (2, 0)  # the row and its repeat
    again = call("ingest", config_file)
    assert "pool version 2 unchanged" in again.out
    total = again.out.splitlines()[2].split()
    assert total[-4:] == ["199", "0", "2", "1"]
