"""What a reader finds in the demo pool: the planted counts, and no test row but the planted leak."""

import json
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from clusterucb_core.demo import dirt
from clusterucb_core.demo.families import FAMILIES, FAMILY_SIZES
from clusterucb_core.demo.pool import write_pool
from clusterucb_core.demo.target import TEST_ROWS, VALIDATION_ROWS, draw_target, write_target
from clusterucb_core.pool.formats import ReadRow, read_file
from clusterucb_core.prompts import normalised_prompt
from clusterucb_core.records import Sample, Target
from clusterucb_core.targets.catalog import TargetSettings, load_target
from clusterucb_core.targets.leaks import find_leaks


def write_all(folder: Path, seed: int) -> dict[str, Path]:
    validation, test = draw_target(seed=seed)
    write_target(folder / "target.jsonl", validation, test)
    return dict(write_pool(folder, test[: dirt.LEAKS], seed=seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def files(folder) -> dict[str, Path]:
    return write_all(folder, seed=0)


@pytest.fixture(scope="module")
def rows(files) -> dict[str, list[ReadRow]]:
    return {family: list(read_file(path, source=family)) for family, path in files.items()}


@pytest.fixture(scope="module")
def samples(rows) -> list[Sample]:
    return [sample for family in FAMILIES for row in rows[family] for sample in row.samples]


@pytest.fixture(scope="module")
def target(folder) -> Target:
    settings = TargetSettings(name="units", validation="target.jsonl", test="target.jsonl")
    return load_target(settings, folder)


def test_every_family_lies_in_a_container_of_its_own(files):
    # the two JSON arrays differ in the shape of their rows
    names = Counter(path.name.removeprefix(family) for family, path in files.items())
    assert names == {
        ".json": 2, ".csv": 1, ".parquet": 1, ".jsonl.gz": 1, ".tsv": 1, ".jsonl.zst": 1, ".jsonl": 1,
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_clean_samples_and_its_planted_ones(family, rows):
    found = [sample for row in rows[family] for sample in row.samples]
    planted = dirt.REPEATED.get(family, 0) + dirt.LEAKED.get(family, 0)
    assert len(found) == FAMILY_SIZES[family] + planted
    different = {normalised_prompt(sample.messages) for sample in found}
    assert len(different) == FAMILY_SIZES[family] + dirt.LEAKED.get(family, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_bad_rows_are_quarantined_for_the_reason_they_were_planted_for(family, rows):
    reasons = Counter(str(bad.reason) for row in rows[family] for bad in row.bad)
    assert reasons == dirt.QUARANTINED.get(family, {})


def test_no_prompt_is_in_two_families(samples):
    sources: dict[str, set[str]] = {}
    for sample in samples:
        sources.setdefault(normalised_prompt(sample.messages), set()).add(sample.source)
    assert all(len(names) == 1 for names in sources.values())


def test_what_ingest_has_to_clean_is_in_the_files(files):
    cleaned = dirt.CLEANED
    assert files["capitals"].read_bytes().startswith(b"\xef\xbb\xbf")
    assert (
        files["unit_conversion"].read_bytes().count(b"<|endoftext|>")
        == cleaned["unit_conversion"]["end_marker"] + 2
    )
    words = [row.samples[0].messages[0].content for row in read_file_rows(files["string_puzzles"])]
    assert not any(word.endswith(dirt.PLACEHOLDER_WORDS) for word in words)


def read_file_rows(path: Path) -> list[ReadRow]:
    return list(read_file(path, source="any"))


def test_placeholder_inputs_are_planted_as_often_as_documented(files):
    with zstandard.open(files["string_puzzles"], "rt", encoding="utf-8") as lines:
        inputs = Counter(json.loads(line)["input"] for line in lines)
    planted = sum(inputs[word] for word in dirt.PLACEHOLDER_WORDS)
    assert planted == dirt.CLEANED["string_puzzles"]["placeholder_input"]


def test_only_the_planted_samples_leak_a_test_row(samples, target):
    leaks = find_leaks(target, samples)
    sources = {sample.sample_id: sample.source for sample in samples}
    assert Counter(sources[leak.sample_id] for leak in leaks) == dirt.LEAKED
    assert {leak.reason for leak in leaks} == {"same_prompt"}


def test_the_target_has_its_rows_and_no_conversion_twice(target):
    assert (len(target.validation), len(target.test)) == (VALIDATION_ROWS, TEST_ROWS)
    answers = [row.messages[-1].content for row in (*target.validation, *target.test)]
    assert len(set(answers)) == len(answers)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(files, folder, tmp_path):
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    same, other = write_all(tmp_path / "same", seed=0), write_all(tmp_path / "other", seed=1)
    assert all(same[family].read_bytes() == path.read_bytes() for family, path in files.items())
    assert all(other[family].read_bytes() != path.read_bytes() for family, path in files.items())
    assert (tmp_path / "same" / "target.jsonl").read_bytes() == (folder / "target.jsonl").read_bytes()
