import gzip
import json
from pathlib import Path

import pytest
import zstandard

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.records import CodeTest, Message
from clusterucb_core.targets.rows import read_rows

ROW = {"prompt": "1 + 1?", "completion": "2"}
CHOICE = ROW | {"choices": ["1", "2"], "answer_index": 1}


def read(path, split="validation"):
    return read_rows(path, split, subtask_key="subtask", default_subtask="sums")


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_prompt_and_completion_become_a_user_and_an_assistant_turn(tmp_path):
    (row,) = read(write_lines(tmp_path / "t.jsonl", CHOICE | {"source_index": 7}))
    assert row.messages == (Message("user", "1 + 1?"), Message("assistant", "2"))
    assert (row.subtask, row.choices, row.answer_index) == ("sums", ("1", "2"), 1)


def test_messages_are_kept_as_they_are(tmp_path):
    turns = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "  b\n")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns], "subtask": "x"}
    (read_row,) = read(write_lines(tmp_path / "t.jsonl", row))
    assert [(m.role, m.content) for m in read_row.messages] == turns
    assert read_row.subtask == "x"


@pytest.mark.parametrize(
    "name", ["t.json", "t.json.gz", "t.json.zst", "t.jsonl", "t.jsonl.gz", "t.jsonl.zst"]
)
def test_every_container_gives_the_same_rows(tmp_path, name):
    rows = [ROW, CHOICE]
    is_array = ".jsonl" not in name
    text = json.dumps(rows) if is_array else "\n".join(json.dumps(row) for row in rows) + "\n\n"
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rsplit(".", 1)[1], bytes)
    (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbf" + text.encode()))
    expected = read(write_lines(tmp_path / "plain.jsonl", *rows))
    assert read(tmp_path / name) == expected


def test_a_unicode_line_separator_does_not_split_a_row(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(ROW | {"prompt": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read(path)[0].messages[0].content == "a\u2028b"


def test_each_split_gives_its_own_rows(tmp_path):
    rows = [ROW | {"split": "test"}, CHOICE | {"split": "validation"}]
    path = write_lines(tmp_path / "t.jsonl", *rows)
    assert len(read(path, "validation")) == len(read(path, "test")) == 1
    assert read(path, "validation")[0].choices == ("1", "2")


def test_the_row_id_follows_the_content_and_is_unique(tmp_path):
    first, second, third = read(write_lines(tmp_path / "t.jsonl", ROW, CHOICE, ROW))
    (again,) = read(write_lines(tmp_path / "u.jsonl", ROW | {"split": "validation"}))
    assert first.row_id == again.row_id
    assert len({first.row_id, second.row_id, third.row_id}) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], r"line 2: \[1\] is not an object"),
        ({"completion": "2"}, r"line 2: has no 'prompt', its keys are \['completion'\]"),
        ({"prompt": "1"}, "line 2: has no 'completion'"),
        (ROW | {"completion": " \n"}, r"line 2: completion is ' \\n'; give a text that is not blank"),
        (ROW | {"completion": 2}, "line 2: completion is 2; give a text"),
        (ROW | {"prompt": "a\ud800"}, r"line 2: prompt is 'a\\ud800', with half of a surrogate pair"),
        (ROW | {"subtask": 3}, "line 2: subtask is 3"),
        (ROW | {"split": "train"}, "line 2: split is 'train'; use 'validation' or 'test'"),
        (ROW | {"split": "validation"}, "split is 'validation', but rows before it lack the key"),
        (CHOICE | {"answer_index": 2}, "line 2: answer_index is 2 with 2 choices"),
        (CHOICE | {"answer_index": -1}, "line 2: answer_index is -1"),
        (CHOICE | {"answer_index": True}, "answer_index True; give a list of texts and a whole number"),
        (CHOICE | {"choices": None}, "choices is None and answer_index 1"),
        (CHOICE | {"choices": []}, "answer_index is 1 with 0 choices"),
        (CHOICE | {"choices": ["1", ""]}, r"line 2: choices\[1\] is ''"),
        (ROW | {"messages": []}, "has messages and prompt or completion"),
        ({"messages": "hello"}, "messages is 'hello'; give a list"),
        ({"messages": []}, r"the roles are \[\]"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, r"the roles are \['assistant'\]"),
        ({"messages": ["a"]}, "message 'a' is not an object"),
        ({"messages": [{"role": "human", "content": "a"}]}, "role is 'human'; use one of system, user"),
        ({"messages": [{"role": "user"}]}, "has no 'content'"),
    ],
)
def test_a_bad_row_is_an_error_with_its_line_and_value(tmp_path, row, message):
    with pytest.raises(InvalidTarget, match=message):
        read(write_lines(tmp_path / "t.jsonl", ROW, row))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"prompt": "a', "line 1: not JSON"),
        ("t.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("t.jsonl", b'{"prompt": "\xff"}\n', r"line 1: byte 12 \(b'\\xff\"}\\n'\) is not UTF-8"),
        ("t.jsonl", b"{\0}\n", "line 1: not JSON"),
        ("t.jsonl", b"", "has no row; add one"),
        ("t.json", b"{}", "not an array of rows"),
        ("t.json", b"[1]", "row 1: 1 is not an object"),
        ("t.csv", b"a,b", r"ends in '.csv'; a target file is .jsonl or .json"),
        ("t.jsonl.gz", b"plain", "is damaged"),
        ("t.jsonl.gz", gzip.compress(b" \n" * 99, mtime=0)[:-12], "is damaged"),
        ("t.jsonl.zst", b"plain", "is damaged"),
    ],
    ids=[
        "cut row",
        "deep row",
        "not UTF-8",
        "NUL",
        "empty",
        "object",
        "number",
        "suffix",
        "no gzip",
        "cut gzip",
        "no zstandard",
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidTarget, match=message) as failure:
        read(tmp_path / name)
    assert name in str(failure.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InvalidTarget, match=r"none\.jsonl cannot be read .* check the path"):
        read(tmp_path / "none.jsonl")


def test_a_file_without_a_row_of_the_split_is_an_error(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", ROW | {"split": "validation"})
    with pytest.raises(InvalidTarget, match=r"has no row with split 'test'; add one"):
        read(path, "test")


def test_a_test_and_its_entry_point_are_kept_and_either_alone_is_not(tmp_path):
    check = {"test": "def check(f): ...", "entry_point": "f"}
    alone = [{"prompt": f"q{i}", "completion": "a", key: check[key]} for i, key in enumerate(check)]
    both, *others = read(write_lines(tmp_path / "t.jsonl", ROW | check, *alone))
    assert both.code == CodeTest("f", "def check(f): ...")
    assert [row.code for row in others] == [None, None]
    assert both.row_id == read(write_lines(tmp_path / "u.jsonl", ROW))[0].row_id


@pytest.mark.parametrize(
    ("change", "message"),
    [({"entry_point": "f("}, r"entry_point is 'f\('; give the name"), ({"test": " "}, "test is ' '")],
)
def test_a_test_that_cannot_be_called_is_an_error(tmp_path, change, message):
    row = ROW | {"test": "def check(f): ...", "entry_point": "f"} | change
    with pytest.raises(InvalidTarget, match=message):
        read(write_lines(tmp_path / "t.jsonl", row))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst", "b.jsonl"])
def test_a_file_beyond_the_limit_is_refused_with_it(tmp_path, name, monkeypatch):
    monkeypatch.setattr("clusterucb_core.targets.rows.MAX_TARGET_BYTES", 100_000)
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(b"[" + b" " * 100_000 + b"]"))
    with pytest.raises(InvalidTarget, match=r"holds more than 100000 bytes, unpacked"):
        read(tmp_path / name)
