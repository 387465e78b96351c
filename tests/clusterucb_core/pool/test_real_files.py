"""The real pool files, found through CLUSTERUCB_DATA: counts agree with the README beside them."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from clusterucb_core.pool.conversations import is_placeholder
from clusterucb_core.pool.formats import ReadRow, read_file
from clusterucb_core.pool.ingest import PoolSettings, ingest, ingest_counts
from clusterucb_core.prompts import normalised_prompt
from clusterucb_core.records import Sample

DATA = os.environ.get("CLUSTERUCB_DATA")
pytestmark = pytest.mark.skipif(
    DATA is None, reason="CLUSTERUCB_DATA names no folder with the real pool files"
)
POOL = Path(DATA or ".") / "pool"

# file: rows, samples, exact repeats of a sample, repeated prompts, rows without an answer. A row with an
# answer is a sample, except that every path of the 100 OASST trees is one: hence 564 samples of 100 prompts.
EXPECTED = {
    "gsm8k_train.jsonl.gz": (7441, 7441, 0, 0, 0),
    "flan_cot_aqua.tsv.gz": (2728, 2728, 0, 0, 0),
    "flan_cot_creak.tsv.gz": (6915, 6915, 0, 0, 0),
    "flan_cot_ecqa.tsv.gz": (7112, 7112, 0, 0, 0),
    "flan_cot_gsm8k.tsv.gz": (7441, 7441, 0, 0, 0),
    "flan_cot_qasc.tsv.gz": (1084, 1084, 0, 0, 0),
    "flan_cot_sensemaking.tsv.gz": (6070, 6070, 0, 0, 0),
    "flan_cot_strategyqa.tsv.gz": (2061, 2061, 1, 1, 0),
    "code_alpaca_2k.json.gz": (2017, 2015, 0, 0, 2),
    "alpaca_5000.json.gz": (5000, 4998, 0, 0, 2),
    "gpteacher_toolformer.json.gz": (7673, 7673, 0, 20, 0),
    "t0_train_20k.jsonl.gz": (19438, 18948, 209, 507, 490),
    "self_instruct_seed_tasks.jsonl.gz": (175, 175, 0, 0, 0),
    "sharegpt_fastchat_dummy.json.gz": (500, 500, 0, 448, 0),
    "oasst_en_100_tree.jsonl.gz": (100, 564, 0, 464, 0),
}


@cache
def _rows(name: str) -> tuple[ReadRow, ...]:
    return tuple(read_file(POOL / name, source=name))


def _samples(name: str) -> Iterator[Sample]:
    for row in _rows(name):
        yield from row.samples


def _lines(name: str) -> list[str]:
    return gzip.decompress((POOL / name).read_bytes()).decode().rstrip("\n").split("\n")


@pytest.mark.parametrize("name", EXPECTED)
def test_every_file_has_the_counts_of_its_readme(name: str) -> None:
    rows, samples, repeats, prompts, empty = EXPECTED[name]
    ids = Counter(sample.sample_id for sample in _samples(name))
    distinct = {normalised_prompt(sample.messages) for sample in _samples(name)}
    reasons = Counter(str(bad.reason) for row in _rows(name) for bad in row.bad)
    assert len(_rows(name)) == rows
    assert ids.total() == samples
    assert (ids.total() - len(ids), ids.total() - len(distinct)) == (repeats, prompts)
    assert reasons == Counter({"no_answer": empty} if empty else {})


def test_the_whole_pool_is_read_and_repeats_across_files_are_seen(tmp_path: Path) -> None:
    names = ["gsm8k_train.jsonl.gz", *(name for name in sorted(EXPECTED) if name != "gsm8k_train.jsonl.gz")]
    settings = PoolSettings.model_validate({"sources": [{"path": name} for name in names]})
    counts = ingest_counts(ingest(settings, base_folder=POOL, artifact_root=tmp_path))
    by_source = {source.source: source for source in counts.sources}
    assert (counts.rows_read, counts.samples_read, counts.n_samples) == (75_755, 75_725, 66_843)
    assert counts.quarantined == {"no_answer": 494}
    assert by_source["flan_cot_gsm8k"].duplicates == 7441
    assert by_source["oasst_en_100_tree"].kept == 100
    # 448 repeats of its own, and one more prompt that an OASST tree has, too.
    assert by_source["sharegpt_fastchat_dummy"].duplicates == 449
    own = sum(row[3] for row in EXPECTED.values())
    assert counts.duplicates == own + 7441 + 1


def test_every_end_marker_of_t0_is_gone() -> None:
    rows = [json.loads(line) for line in _lines("t0_train_20k.jsonl.gz")]
    assert sum(row["completion"].endswith("<|endoftext|>") for row in rows) == 19_438
    assert not any("<|endoftext|>" in s.messages[-1].content for s in _samples("t0_train_20k.jsonl.gz"))


@pytest.mark.parametrize("name", ["flan_cot_creak.tsv.gz", "flan_cot_strategyqa.tsv.gz"])
def test_every_quote_of_a_tsv_is_kept(name: str) -> None:
    raw = [line.count('"') for line in _lines(name)]
    read = [sum(turn.content.count('"') for turn in sample.messages) for sample in _samples(name)]
    assert read == raw
    assert sum(raw) > 0


def test_the_row_with_unicode_line_separators_is_whole() -> None:
    prompts = [sample.messages[0].content for sample in _samples("flan_cot_gsm8k.tsv.gz")]
    (prompt,) = [prompt for prompt in prompts if "\u2028" in prompt]
    assert prompt.count("\u2028") == 2
    assert prompt.endswith("?")


def test_placeholder_inputs_are_no_part_of_a_prompt() -> None:
    rows = json.loads(gzip.decompress((POOL / "alpaca_5000.json.gz").read_bytes()))
    odd = [row for row in rows if row["input"].strip() and is_placeholder(row["input"])]
    # The README counts 53; six more are wrapped otherwise, such as "(No input)" and "[noinput]".
    assert len(odd) == 59
    prompts = {sample.messages[0].content for sample in _samples("alpaca_5000.json.gz")}
    assert {row["instruction"].strip() for row in odd} <= prompts


def test_the_best_path_of_each_tree_comes_first() -> None:
    for row, line in zip(
        _rows("oasst_en_100_tree.jsonl.gz"), _lines("oasst_en_100_tree.jsonl.gz"), strict=True
    ):
        replies = json.loads(line)["prompt"]["replies"]
        best = min(replies, key=lambda reply: reply.get("rank", float("inf")))
        assert row.samples[0].messages[1].content == best["text"].strip()
