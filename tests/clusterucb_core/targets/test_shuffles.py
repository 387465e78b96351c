"""Shuffled rows keep their words and their white space, and change only the order."""

from collections import Counter
from dataclasses import replace

import pytest

from clusterucb_core.records import Message, Target, TargetRow
from clusterucb_core.targets.shuffles import can_be_shuffled, shuffled_rows


def row_of(number, prompt, answer):
    return TargetRow(f"row{number}", "sums", (Message("user", prompt), Message("assistant", answer)))


def target_of(*rows):
    return Target("sums", tuple(rows), ())


TEXT = "Ann has  two apples\nand Bob has three."


def test_a_turn_keeps_its_words_and_its_white_space():
    (samples,) = shuffled_rows(target_of(row_of(1, TEXT, "they have five")), shuffles=4, seed=0).values()
    contents = [sample.messages[0].content for sample in samples]
    assert len(set(contents)) == 4
    for content in contents:
        assert Counter(content.split()) == Counter(TEXT.split())
        assert [ch for ch in content if ch.isspace()] == [ch for ch in TEXT if ch.isspace()]
    assert [message.role for message in samples[0].messages] == ["user", "assistant"]


def test_a_script_without_spaces_is_shuffled_by_the_character():
    text = "二加三等于几 apples"
    (samples,) = shuffled_rows(target_of(row_of(1, text, "五")), shuffles=1, seed=3).values()
    content = samples[0].messages[0].content
    assert content != text
    assert Counter(content) == Counter(text)
    assert "apples" in content


@pytest.mark.parametrize(("prompt", "possible"), [("one", False), ("no no no", False), ("one two", True)])
def test_a_row_without_another_order_is_told(prompt, possible):
    assert can_be_shuffled(row_of(1, prompt, "yes")) is possible
    assert len(shuffled_rows(target_of(row_of(1, prompt, "yes")), shuffles=2, seed=0)) == possible


def test_rows_that_read_the_same_count_once_and_ids_name_row_number_and_seed():
    rows = (row_of(1, TEXT, "a b"), row_of(2, TEXT, "a b"), row_of(3, TEXT, "a c"))
    found = shuffled_rows(target_of(*rows), shuffles=2, seed=7)
    assert sorted(found) == ["row2", "row3"]
    assert [sample.sample_id for sample in found["row3"]] == ["row3:shuffled:7:0", "row3:shuffled:7:1"]


def test_a_shuffle_depends_on_its_row_and_seed_only():
    rows = [row_of(number, TEXT + f" {number}", "a b c d e f") for number in range(3)]
    alone = shuffled_rows(target_of(rows[1]), shuffles=2, seed=0)
    beside = shuffled_rows(target_of(*reversed(rows)), shuffles=2, seed=0)
    assert beside["row1"] == alone["row1"]
    renamed = shuffled_rows(replace(target_of(rows[1]), name="other"), shuffles=2, seed=1)
    assert renamed["row1"][0].messages != alone["row1"][0].messages
