import json
from pathlib import Path

import pytest

from clusterucb_core.artifacts import read_manifest
from clusterucb_core.erasure.token_tables import erase_from_tokens
from clusterucb_core.lm.tokens import open_tokens

FLAT = {"a": [11, 12], "b": [21, 22, 23], "c": [31]}


@pytest.mark.parametrize("erased", [["a"], ["b"], ["c"], ["a", "c"], ["a", "b"]])
def test_the_others_keep_their_tokens_and_the_erased_have_none(tokens, erased):
    before = {sample.sample_id: sample for sample in open_tokens(tokens).take(FLAT)}
    assert erase_from_tokens(Path(tokens.path), frozenset(erased))
    table = open_tokens(tokens)
    assert table.sample_ids == [name for name in FLAT if name not in erased]
    for sample in table.take(table.sample_ids):
        assert sample.input_ids.tolist() == FLAT[sample.sample_id]
        assert sample.labels.tolist() == before[sample.sample_id].labels.tolist()
    manifest = read_manifest(tokens)
    assert (manifest["n"], manifest["tokens"]) == (len(table.sample_ids), int(table.lengths.sum()))
    assert manifest["supervised_tokens"] == int(table.supervised.sum())
    assert manifest["erased"] == erased


def test_a_table_of_which_nothing_is_left_is_empty(tokens):
    erase_from_tokens(Path(tokens.path), frozenset(FLAT))
    table = open_tokens(tokens)
    assert (table.sample_ids, table.input_ids.size) == ([], 0)


def test_what_was_said_of_a_sample_without_tokens_goes_too(tokens):
    assert erase_from_tokens(Path(tokens.path), frozenset("d"))
    assert [exclusion.detail for exclusion in open_tokens(tokens).exclusions] == ["erased"]
    assert len(open_tokens(tokens).sample_ids) == 3


def test_a_repeat_and_a_table_of_other_samples_change_nothing(tokens):
    erase_from_tokens(Path(tokens.path), frozenset("ad"))
    before = Path(tokens.path).stat().st_ino
    assert not erase_from_tokens(Path(tokens.path), frozenset("adz"))
    assert Path(tokens.path).stat().st_ino == before
    assert json.loads((Path(tokens.path) / "sample_ids.json").read_text()) == ["b", "c"]
