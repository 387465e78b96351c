"""What a folder holds that a run could be made of."""

import gzip
import json

import pytest

from clusterucb_core.proposals import Proposals, find_proposals, target_name

PAIR = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
SPLIT = json.dumps({"split": "test", "prompt": "a", "completion": "b"}) + "\n"


@pytest.fixture
def write(tmp_path):
    def written(name, text=PAIR):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())

    return written


def test_an_empty_folder_gives_nothing(tmp_path):
    assert find_proposals(tmp_path) == Proposals(pool=(), validation=None, test=None, model=None)


def test_files_of_one_kind_in_a_folder_become_a_pattern(write, tmp_path):
    for name in ("data/a.jsonl.gz", "data/b.jsonl.gz", "data/c.csv", "notes.txt"):
        write(name, "question,answer\nx,y\n" if name.endswith("csv") else PAIR)
    assert find_proposals(tmp_path).pool == ("data/*.jsonl.gz", "data/c.csv")


def test_a_pattern_that_would_take_more_than_the_pool_is_none(write, tmp_path):
    for name in ("a.jsonl", "b.jsonl", "gsm8k_valid.jsonl", "gsm8k_test.jsonl"):
        write(name)
    found = find_proposals(tmp_path)
    assert found.pool == ("a.jsonl", "b.jsonl")
    assert (found.validation, found.test) == ("gsm8k_valid.jsonl", "gsm8k_test.jsonl")


def test_rows_that_say_their_split_are_a_target_whatever_the_file_is_called(write, tmp_path):
    write("sums.jsonl.gz", SPLIT)
    write("pool.jsonl")
    found = find_proposals(tmp_path)
    assert (found.validation, found.test, found.pool) == ("sums.jsonl.gz", "sums.jsonl.gz", ("pool.jsonl",))


@pytest.mark.parametrize("text", ["{broken\n", '{"a": 1}\n', ""])
def test_files_that_no_reader_knows_are_left_out(write, tmp_path, text):
    write("odd.jsonl", text)
    write("bad.jsonl.gz")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    assert find_proposals(tmp_path).pool == ()


def test_a_model_folder_is_found_and_its_files_are_no_data(write, tmp_path):
    for name in ("models/tiny/config.json", "models/tiny/tokenizer.json", "models/tiny/model.safetensors"):
        write(name, "{}")
    write("models/old/config.json", "{}")
    found = find_proposals(tmp_path)
    assert (found.model, found.pool) == ("models/tiny", ())


def test_hidden_and_deep_folders_are_not_looked_into(write, tmp_path):
    write(".clusterucb/artifacts/a.jsonl")
    write("one/two/three/four.jsonl")
    assert find_proposals(tmp_path).pool == ()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gsm8k_valid.jsonl.gz", "gsm8k"),
        ("my-BBH.jsonl", "bbh"),
        ("sums.jsonl", "sums"),
        ("_my sums.jsonl", "mysums"),
        ("&.jsonl", "target"),
    ],
)
def test_a_target_is_named_after_its_file(tmp_path, name, wanted):
    assert target_name(tmp_path / name) == wanted
