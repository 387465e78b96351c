import dataclasses
import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.errors import InvalidTarget
from clusterucb_core.evaluation.answers import answer_form
from clusterucb_core.records import CodeTest, Message, Sample
from clusterucb_core.targets import catalog
from clusterucb_core.targets.catalog import TargetSettings, load_target

ROWS = [
    {"prompt": "b?", "completion": "B", "split": "validation", "subtask": "late"},
    {"prompt": "a?", "completion": "A", "split": "validation", "subtask": "early"},
    {"prompt": "c?", "completion": "C", "split": "test", "subtask": "late"},
    {"prompt": "d?", "completion": "D", "split": "validation", "subtask": "late"},
]

needs_data = pytest.mark.skipif(
    "CLUSTERUCB_DATA" not in os.environ, reason="CLUSTERUCB_DATA names no folder with pool/ and targets/"
)


@pytest.fixture
def target(tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    return load_target(TargetSettings(name="t", validation="rows.jsonl", test="rows.jsonl"), tmp_path)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_one_file_can_give_both_splits(target):
    assert [row.messages[0].content for row in target.validation] == ["b?", "a?", "d?"]
    assert [row.messages[0].content for row in target.test] == ["c?"]


def test_without_a_test_file_the_test_split_is_empty(tmp_path, target):
    alone = load_target(TargetSettings(name="t", validation="rows.jsonl"), tmp_path)
    assert alone.test == ()
    assert alone.validation == target.validation


def test_paths_are_relative_to_the_base_folder(tmp_path, target):
    inner = tmp_path / "inner"
    inner.mkdir()
    settings = TargetSettings(name="t", validation="../rows.jsonl", test=str(tmp_path / "rows.jsonl"))
    assert load_target(settings, inner) == target


def test_subtasks_are_sorted_and_indexed_by_validation_row(target):
    names, index = catalog.subtask_index(target)
    assert names == ["early", "late"]
    assert index.tolist() == [1, 0, 1]


def test_rows_become_samples_that_carry_the_row_id(target):
    (sample,) = catalog.test_samples(target)
    messages = (Message("user", "c?"), Message("assistant", "C"))
    assert sample == Sample(target.test[0].row_id, "target:t", messages)
    assert [s.sample_id for s in catalog.validation_samples(target)] == [r.row_id for r in target.validation]


def test_the_digest_follows_name_rows_and_split(target):
    swapped = dataclasses.replace(target, validation=target.test, test=target.validation)
    renamed = dataclasses.replace(target, name="u")
    copy = dataclasses.replace(target)
    digests = [catalog.target_digest(t) for t in (target, swapped, renamed, copy)]
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3


def test_the_digest_of_rows_without_a_test_is_that_of_before_rows_had_tests(target):
    content = [[dataclasses.asdict(row) for row in rows] for rows in (target.validation, target.test)]
    for row in (*content[0], *content[1]):
        assert row.pop("code") is None
    assert catalog.target_digest(target) == fingerprint(target.name, *content)
    tested = dataclasses.replace(target.test[0], code=CodeTest("f", "def check(f): ..."))
    other = dataclasses.replace(target, test=(tested, *target.test[1:]))
    assert catalog.target_digest(other) != catalog.target_digest(target)


def test_a_prompt_in_both_splits_is_an_error(tmp_path):
    rows = [ROWS[0], ROWS[2] | {"prompt": "  B? "}]
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InvalidTarget, match=r"test row 1 has the prompt of validation row 1 \('b\?'\)"):
        load_target(TargetSettings(name="t", validation="rows.jsonl", test="rows.jsonl"), tmp_path)


@pytest.mark.parametrize(
    "name", ["", "../bbh", "/bbh", ".hidden", "-b", "a b", "a/b", "a\\b", "a\n", "a\0", "a" * 101]
)
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(ValidationError, match="name"):
        TargetSettings(name=name)


def test_an_unknown_name_is_fine_with_a_validation_file_and_suggests_without(tmp_path, target):
    assert target.name == "t"
    with pytest.raises(InvalidTarget, match=r"'gsm9k' names no validation file.*did you mean gsm8k\?"):
        load_target(TargetSettings(name="gsm9k"), tmp_path)


def test_a_bundled_target_without_rows_asks_for_a_file(tmp_path):
    with pytest.raises(InvalidTarget, match=r"'bbh' ships no rows; set target\.validation"):
        load_target(TargetSettings(name="bbh"), tmp_path)


@pytest.mark.parametrize("name", catalog.available_targets())
def test_each_bundled_target_is_valid_and_says_how_answers_are_scored(name):
    bundled = catalog.bundled_target(name)
    assert bundled.description
    assert answer_form(name).max_new_tokens > 0


def test_the_bundled_targets_are_those_of_the_folder():
    assert {"bbh", "gsm8k", "humaneval"} <= set(catalog.available_targets())


def test_a_new_target_needs_only_its_yaml_file(tmp_path):
    (tmp_path / "sums.yaml").write_text(
        "description: sums\nsubtask_field: kind\nvalidation: sums.jsonl\ntest: sums.jsonl\n"
        "answer: {kind: generation, regex: '= (.*)', max_new_tokens: 8}\n",
        encoding="utf-8",
    )
    rows = [{**row, "kind": row["subtask"]} for row in ROWS]
    write(tmp_path / "sums.jsonl", rows)
    target = load_target(TargetSettings(name="sums"), Path("elsewhere"), bundled=tmp_path)
    assert catalog.available_targets(folder=tmp_path) == ["sums"]
    assert catalog.subtask_index(target)[0] == ["early", "late"]
    assert len(target.test) == 1
    assert answer_form("sums", folder=tmp_path).max_new_tokens == 8


def test_a_bundled_target_names_the_subtask_of_rows_that_the_run_brings(tmp_path):
    (tmp_path / "sums.yaml").write_text("{description: sums, subtask_field: kind}", encoding="utf-8")
    write(tmp_path / "mine.jsonl", [{"kind": row["subtask"], **row, "subtask": "one"} for row in ROWS])
    for name, subtasks in (("sums", ["early", "late"]), ("other", ["one"])):
        settings = TargetSettings(name=name, validation="mine.jsonl")
        found = load_target(settings, tmp_path, bundled=tmp_path)
        assert catalog.subtask_index(found)[0] == subtasks


def test_a_test_file_of_the_run_stands_before_the_bundled_one(tmp_path):
    text = "{description: d, validation: rows.jsonl, test: gone.jsonl}"
    (tmp_path / "sums.yaml").write_text(text, encoding="utf-8")
    write(tmp_path / "rows.jsonl", ROWS)
    target = load_target(TargetSettings(name="sums", test="rows.jsonl"), tmp_path, bundled=tmp_path)
    assert len(target.test) == 1


@pytest.mark.parametrize("text", ["description: d\nanswr: {}\n", "[1]", "", "a: [", "validation: x"])
def test_a_bundled_file_that_does_not_fit_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "sums.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidTarget, match=r"sums\.yaml is no bundled target"):
        load_target(TargetSettings(name="sums"), tmp_path, bundled=tmp_path)


@needs_data
@pytest.mark.parametrize(
    ("name", "validation", "test", "subtasks", "with_choices"),
    [("gsm8k", 32, 1319, 1, 0), ("bbh", 81, 6430, 27, 4758), ("humaneval", 10, 154, 1, 0)],
)
def test_the_real_targets_have_the_counts_of_their_readme(name, validation, test, subtasks, with_choices):
    path = f"targets/{name}.jsonl.gz"
    settings = TargetSettings(name=name, validation=path, test=path)
    target = load_target(settings, Path(os.environ["CLUSTERUCB_DATA"]))
    assert (len(target.validation), len(target.test)) == (validation, test)
    assert len({row.subtask for row in target.test}) == subtasks
    assert sum(bool(row.choices) for row in (*target.validation, *target.test)) == with_choices
