import json
from dataclasses import replace

import pytest

from clusterucb_core.store import open_catalog, publish_selections


@pytest.mark.parametrize("version", ["2", "latest"])
def test_export_writes_the_samples_in_rank_order(call, catalog, tmp_path, version):
    outcome = call("export", version, tmp_path / "out.jsonl")
    assert outcome.code == 0
    assert outcome.out.startswith("3 samples of selection version 2")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["messages"][0]["content"] for row in rows][:2] == ["question 2", "question 3"]


def test_export_as_json_says_where(call, catalog, tmp_path):
    shown = json.loads(call("export", "1", tmp_path / "out.json", "--format", "alpaca", "--json").out)
    assert shown == {"path": str(tmp_path / "out.json"), "n": 3, "format": "alpaca", "version": 1} | {
        "reshaped": 0,
        "files": [],
    }


def test_an_unknown_format_is_bad_usage(call, catalog, tmp_path):
    outcome = call("export", "1", tmp_path / "out", "--format", "xml")
    assert outcome.code == 2
    assert "jsonl, parquet, alpaca, sharegpt, datasets" in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_folder_for_datasets_and_what_lies_beside_it_are_named(call, catalog, tmp_path):
    arguments = ["export", "2", tmp_path / "out", "--format", "datasets", "--for", "llama-factory"]
    outcome = call(*arguments, "--for", "axolotl")
    assert outcome.code == 0, outcome.err
    named = [line.split()[-1] for line in outcome.out.splitlines()[1:]]
    assert named == [
        str(tmp_path / name) for name in ("out/README.md", "dataset_info.json", "out.axolotl.yaml")
    ]
    assert "out" in json.loads((tmp_path / "dataset_info.json").read_text())


def test_order_weights_and_provenance_are_asked_for_one_by_one(call, catalog, tmp_path):
    out = tmp_path / "out.jsonl"
    call("export", "2", out, "--order", "source", "--weights", "--provenance")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["sample_id"] for row in rows] == ["s02", "s03", "s00"]
    assert sum(row["weight"] for row in rows) == pytest.approx(3.0)
    orders = set()
    for seed in range(4):
        call("export", "2", out, "--order", "random", "--seed", seed, "--provenance")
        orders.add(tuple(json.loads(line)["rank"] for line in out.read_text().splitlines()))
    assert len(orders) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--order", "size"], "--order 'size' is unknown; known are rank, random, source"),
        (["--for", "trl"], "--for 'trl' is unknown; known are llama-factory, axolotl"),
        (["--order", "random", "--seed", "-1"], "--seed"),
        (["--for", "llama-factory", "--format", "parquet"], "must end in .parquet"),
    ],
)
def test_what_cannot_be_exported_is_bad_usage(call, catalog, tmp_path, arguments, message):
    outcome = call("export", "2", tmp_path / "out.jsonl", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def talk(catalog, new_draft):
    """Version 3 for a target of its own, and version 4 for the first one again."""
    drafts = [new_draft("third", ["s04", "s05", "s06"]), new_draft("fourth", ["s01", "s02", "s03"])]
    with open_catalog(catalog) as con:
        publish_selections(con, [replace(drafts[0], target="talk")])
        publish_selections(con, drafts[1:])
    return catalog


def test_the_latest_of_a_target_is_that_of_the_newest_run_for_it(call, talk, tmp_path):
    for target, version in (("talk", 3), ("sums", 4)):
        shown = call("export", "latest", tmp_path / "out.jsonl", "--target", target, "--json")
        assert json.loads(shown.out)["version"] == version


def test_a_target_that_is_not_that_of_the_version_is_refused(call, talk, tmp_path):
    outcome = call("export", "2", tmp_path / "out.jsonl", "--target", "talk")
    assert (outcome.code, "version 2 was selected for 'sums'" in outcome.err) == (2, True)
    outcome = call("export", "latest", tmp_path / "out.jsonl", "--target", "walk")
    assert (outcome.code, "known targets: sums, talk" in outcome.err) == (1, True)
    assert call("export", "3", tmp_path / "out.jsonl", "--target", "talk").code == 0
