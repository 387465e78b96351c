import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb_core.errors import InvalidPool
from clusterucb_core.pool.formats import (
    DETECTION_ROWS,
    MAX_FINDINGS,
    MAX_ROW_CHARS,
    SHAPES,
    FormatName,
    ReadRow,
    Shape,
    _conversations,
    file_shape,
    read_file,
)

GOOD = {"prompt": "Q", "completion": "A"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "instances": {"instruction": "Q", "instances": [{"input": "", "output": "A"}]},
    "oasst": {
        "message_tree_id": "t",
        "prompt": {
            "text": "Q",
            "role": "prompter",
            "replies": [{"text": "A", "role": "assistant", "replies": []}],
        },
    },
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "flan_cot": {"input": "Q", "answer": "A", "rationale": ""},
    "prompt_completion": GOOD,
    "question_answer": {"question": "Q", "answer": "A"},
}


def _lines(path: Path, rows: Iterable[object]) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


def _read(path: Path, format_name: FormatName = "auto") -> list[ReadRow]:
    return list(read_file(path, source="toy", format_name=format_name))


def _texts(rows: Iterable[ReadRow]) -> list[str]:
    """Return each sample as "role:text role:text" and each record as its reason, in row order."""
    seen: list[str] = []
    for row in rows:
        seen += [
            " ".join(f"{turn.role[0]}:{turn.content}" for turn in sample.messages) for sample in row.samples
        ]
        seen += [str(bad.reason) for bad in row.bad]
    return seen


def _one(tmp_path: Path, *rows: object, format_name: FormatName = "auto") -> list[str]:
    return _texts(_read(_lines(tmp_path / "a.jsonl", rows), format_name))


def test_every_variant_is_named_known_and_read() -> None:
    names = [variant.name for variant in get_args(Shape)]
    assert len(set(names)) == len(names)
    assert [shape.name for shape in SHAPES] == names
    assert set(get_args(FormatName)) == {"auto", *names}
    for shape in SHAPES:
        (turns,) = _conversations(shape, EXAMPLES[shape.name])
        assert [turn.content for turn in turns] in (["Q", "A"], ["Q", "\nA"])  # type: ignore[union-attr]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_shape_is_found_out_and_gives_the_same_sample(tmp_path: Path, name: str) -> None:
    path = _lines(tmp_path / "a.jsonl", [EXAMPLES[name]])
    (row,) = _read(path)
    assert _texts([row]) == ["u:Q a:A"]
    (reference,) = _read(_lines(tmp_path / "b.jsonl", [GOOD]))
    assert row.samples == reference.samples
    assert _texts(_read(path, name)) == ["u:Q a:A"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "sample"),
    [
        ({"instruction": "I", "input": "X", "output": "A"}, "u:I\n\nX a:A"),
        ({"instruction": "I ", "input": " < noInput > ", "response": "A"}, "u:I a:A"),
        ({"instruction": "I", "input": None, "output": "A"}, "u:I a:A"),
        ({"instruction": "I", "context": "X", "response": "A", "category": "c"}, "u:I\n\nX a:A"),
        ({"input": r"a\nb", "answer": "(B)", "rationale": r"r\ns"}, "u:a\nb a:r\ns\n(B)"),
        ({"prompt": "P", "completion": "A<|endoftext|>"}, "u:P a:A"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                    {"role": "assistant", "content": "A"},
                ]
            },
            "u:Q a:A",
        ),
        ({"prompt": "other", "messages": EXAMPLES["messages"]["messages"]}, "u:Q a:A"),
        (
            {"conversations": [{"from": "gpt", "value": "Hi"}, *EXAMPLES["sharegpt"]["conversations"]]},
            "u:Q a:A",
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "S"},
                    {"from": "user", "value": "Q"},
                    {"from": "bard", "value": "A"},
                ]
            },
            "s:S u:Q a:A",
        ),
        ({**EXAMPLES["sharegpt"], "system": " S "}, "s:S u:Q a:A"),
        ({**EXAMPLES["sharegpt"], "system": None}, "u:Q a:A"),
        (
            {
                "conversations": [{"from": "system", "value": "S"}, *EXAMPLES["sharegpt"]["conversations"]],
                "system": "another",
            },
            "s:S u:Q a:A",
        ),
        (
            {"instruction": "Q", "output": "A", "system": "S", "history": [["P", "B"], ["R", "C"]]},
            "s:S u:P a:B u:R a:C u:Q a:A",
        ),
        ({"instruction": "Q", "output": "A", "system": "", "history": []}, "u:Q a:A"),
        ({"instruction": "Q", "output": "A", "system": None, "history": None}, "u:Q a:A"),
    ],
)
def test_a_row_becomes_this_conversation(tmp_path: Path, row: object, sample: str) -> None:
    assert _one(tmp_path, row) == [sample]


def test_every_instance_is_a_sample_and_a_bad_one_costs_no_other(tmp_path: Path) -> None:
    instances = [
        {"input": "x", "output": "1"},
        {"input": "y", "output": ""},
        7,
        {"input": "z", "output": "3"},
    ]
    row = {"instruction": "I", "instances": instances}
    assert _one(tmp_path, row) == ["u:I\n\nx a:1", "u:I\n\nz a:3", "no_answer", "wrong_type"]


def test_every_path_of_a_tree_is_a_sample_best_first(tmp_path: Path) -> None:
    replies = [
        {"text": text, "role": "assistant", "rank": rank} for text, rank in (("B", 1), ("A", 0), ("C", None))
    ]
    row = {"message_tree_id": "t", "prompt": {"text": "Q", "role": "prompter", "replies": replies}}
    assert _one(tmp_path, row) == ["u:Q a:A", "u:Q a:B", "u:Q a:C"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": 3, "completion": "A"}, "wrong_type"),
        ({"prompt": ["Q"], "completion": "A"}, "wrong_type"),
        ({"prompt": "Q", "completion": {"text": "A"}}, "wrong_type"),
        ([1, 2, 3], "wrong_type"),
        (["Q", "A", "R"], "wrong_type"),
        ("null", "wrong_type"),
        ("3.5", "wrong_type"),
        ({"prompt": "Q"}, "missing_field"),
        ({"question": "Q", "answer": "A"}, "missing_field"),
        ({"prompt": "Q", "completion": None}, "missing_field"),
        ({"prompt": " ", "completion": "A"}, "no_prompt"),
        ({"prompt": "Q", "completion": "<|endoftext|>"}, "no_answer"),
        ({"prompt": "Q\x00", "completion": "A"}, "nul_character"),
        ({"prompt": "Q", "completion": "\ud83d"}, "lone_surrogate"),
        ('{"prompt": "Q", "completion": "A"', "invalid_json"),
        ("[" * 100_000, "too_deep"),
    ],
)
def test_a_bad_row_is_named_and_its_neighbours_stay(tmp_path: Path, bad: object, reason: str) -> None:
    assert _one(tmp_path, GOOD, bad, {"prompt": "R", "completion": "B"}) == ["u:Q a:A", reason, "u:R a:B"]
    assert sorted(_one(tmp_path, bad, GOOD)) == sorted([reason, "u:Q a:A"])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("text", "wrong_type"),
        (["text"], "wrong_type"),
        ([{"role": "tool", "content": "x"}], "unknown_role"),
        ([{"content": "x"}], "missing_field"),
        ([{"role": "user", "content": None}], "missing_field"),
        ([], "no_prompt"),
        ([{"role": "user", "content": "Q"}], "no_answer"),
    ],
)
def test_bad_turns_have_their_reasons(tmp_path: Path, messages: object, reason: str) -> None:
    assert _one(tmp_path, {"messages": messages}, EXAMPLES["messages"]) == [reason, "u:Q a:A"]


@pytest.mark.parametrize(
    "beside",
    [{"system": 3}, {"history": "P"}, {"history": ["P"]}, {"history": [["P"]]}, {"history": [["P", 1]]}],
)
def test_a_system_message_or_history_that_is_none_is_not_left_out_in_silence(tmp_path: Path, beside) -> None:
    good = {"instruction": "Q", "output": "A"}
    assert _one(tmp_path, good, good | beside) == ["u:Q a:A", "wrong_type"]


def test_bytes_that_are_not_utf8_cost_only_their_row(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n" + good.replace(b"Q", b"\xe9") + b"\n" + good)
    assert _texts(_read(path)) == ["u:Q a:A", "not_utf8", "u:Q a:A"]


def test_a_record_keeps_row_number_keys_and_raw_text(tmp_path: Path) -> None:
    bad = {"prompt": "Q", "odd\ud800": 1}
    rows = _read(_lines(tmp_path / "a.jsonl", [GOOD, "", bad]))
    (record,) = rows[-1].bad
    assert (record.row_number, record.raw) == (3, json.dumps(bad))
    assert "completion is missing" in record.detail
    assert "odd\\ud800" in record.detail


def test_a_row_shorter_than_asked_is_quarantined(tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.jsonl", [GOOD])
    assert _texts(read_file(path, source="toy", min_chars=2)) == ["u:Q a:A"]
    assert _texts(read_file(path, source="toy", min_chars=3)) == ["too_short"]


def test_rows_of_other_keys_may_come_before_the_first_known_one(tmp_path: Path) -> None:
    strangers: list[object] = [{"id": n} for n in range(DETECTION_ROWS - 1)]
    seen = _one(tmp_path, *strangers, GOOD)
    assert seen == ["missing_field"] * (DETECTION_ROWS - 1) + ["u:Q a:A"]


@pytest.mark.parametrize("row", [{"text": "x", "label": 1}, "3", [1, 2], {"prompt": "Q"}])
def test_an_unknown_shape_is_an_error_that_shows_it_and_the_known_ones(tmp_path: Path, row: object) -> None:
    path = _lines(tmp_path / "a.jsonl", [row])
    with pytest.raises(InvalidPool) as caught:
        _read(path)
    text = str(caught.value)
    assert str(path) in text
    assert all(name in text for name in EXAMPLES)
    if isinstance(row, dict):
        assert all(repr(key) in text for key in row)


def test_a_named_format_that_does_not_fit_is_an_error_that_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(InvalidPool, match=r"alpaca \(instruction, output\|response\)"):
        _read(_lines(tmp_path / "a.jsonl", [GOOD]), "alpaca")


def test_a_file_of_bad_rows_only_is_quarantined_and_no_error(tmp_path: Path) -> None:
    assert _one(tmp_path, "{", "}") == ["invalid_json", "invalid_json"]


def test_a_table_without_a_header_is_flan_where_it_has_three_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(rb'say "hi"\nnow' + b"\tno\tbecause\nonly\ttwo\n\ta\tb\nq\t \tr\n")
    assert _texts(_read(path)) == [
        'u:say "hi"\nnow a:because\nno',
        "wrong_column_count",
        "no_prompt",
        "no_answer",
    ]


def test_a_csv_without_a_header_of_known_names_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,c\n1,2,3\n")
    with pytest.raises(InvalidPool, match=r"\['a', 'b', 'c'\]"):
        _read(path)
    path.write_text("a,b,c\n")
    assert _read(path) == []


def test_a_row_with_endless_findings_is_summed_up(tmp_path: Path) -> None:
    row = {"instruction": "I", "instances": [1] * (MAX_FINDINGS + 50)}
    (read,) = _read(_lines(tmp_path / "a.jsonl", [row]))
    assert len(read.bad) == MAX_FINDINGS + 1
    assert read.bad[-1].detail == "and 50 more findings in this row"


def test_parquet_holds_messages_as_structs(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "messages": [EXAMPLES["messages"]["messages"], None]}), path)
    rows = _read(path)
    assert _texts(rows) == ["u:Q a:A", "wrong_type"]
    assert json.loads(rows[1].bad[0].raw) == {"id": None, "messages": None}


def _containers(folder: Path, rows: list[tuple[str, str]]) -> list[Path]:
    """Write the same prompts and completions into every container."""
    dicts = [{"prompt": prompt, "completion": completion} for prompt, completion in rows]
    (folder / "a.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in dicts), encoding="utf-8"
    )
    (folder / "b.json").write_text(json.dumps(dicts, indent=2), encoding="utf-8")
    (folder / "c.json").write_text("\n".join(json.dumps(row) for row in dicts), encoding="utf-8")
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("completion", "prompt"), *((answer, prompt) for prompt, answer in rows)])
    (folder / "d.csv").write_bytes(text.getvalue().encode())
    pq.write_table(pa.Table.from_pylist(dicts), folder / "e.parquet")
    return sorted(folder.iterdir())


TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20).map(
    lambda t: f"<{t}>"
)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_every_container_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    for path in _containers(tmp_path_factory.mktemp("pool"), rows):
        turns = [sample.messages for row in _read(path) for sample in row.samples]
        assert [(user.content, assistant.content) for user, assistant in turns] == rows, path.name


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_the_shape_of_a_file_is_that_of_its_first_row_of_a_known_one(tmp_path: Path, name: str) -> None:
    path = _lines(tmp_path / "rows.jsonl", ["{broken", {"a": 1}, EXAMPLES[name], GOOD])
    assert file_shape(path) == name


def test_a_file_without_rows_has_no_shape(tmp_path: Path) -> None:
    assert file_shape(_lines(tmp_path / "rows.jsonl", ["{broken"])) is None


def test_the_shape_of_a_file_is_looked_for_in_its_first_rows_only(tmp_path: Path) -> None:
    path = _lines(tmp_path / "rows.jsonl", [*[{"a": 1}] * DETECTION_ROWS, GOOD])
    with pytest.raises(InvalidPool, match="no reader knows the shape"):
        file_shape(path)


def test_a_shape_that_was_asked_for_is_the_only_one(tmp_path: Path) -> None:
    path = _lines(tmp_path / "rows.jsonl", [GOOD])
    assert file_shape(path, "prompt_completion") == "prompt_completion"
    with pytest.raises(InvalidPool, match="Known shapes: alpaca"):
        file_shape(path, "alpaca")


def test_rows_stay_in_the_order_of_the_file_before_the_shape_is_known(tmp_path: Path) -> None:
    rows = _read(_lines(tmp_path / "a.jsonl", ["{", {"other": 1}, "{", GOOD, "}"]))
    assert [row.row_number for row in rows] == [1, 2, 3, 4, 5]
    assert _texts(rows) == ["invalid_json", "missing_field", "invalid_json", "u:Q a:A", "invalid_json"]


def test_strangers_are_held_up_to_a_few_megabytes_only(tmp_path: Path) -> None:
    strangers: list[object] = [{"other": "x" * 1_500_000}] * 4
    with pytest.raises(InvalidPool, match="no reader knows the shape"):
        _read(_lines(tmp_path / "a.jsonl", [*strangers, GOOD]))
    with pytest.raises(InvalidPool, match="no reader knows the shape"):
        file_shape(tmp_path / "a.jsonl")


def test_a_row_that_repeats_its_text_in_every_sample_stops_at_a_limit(tmp_path: Path) -> None:
    row = {"instruction": "x" * 1_000_000, "instances": [{"output": str(n)} for n in range(100_000)]}
    (read,) = _read(_lines(tmp_path / "a.jsonl", [row]))
    assert len(read.samples) == MAX_ROW_CHARS // 1_000_001
    assert [bad.reason for bad in read.bad] == ["row_too_long"]


def test_of_a_key_that_is_there_twice_the_last_value_counts(tmp_path: Path) -> None:
    assert _one(tmp_path, '{"prompt": "P", "completion": "A", "prompt": "Q"}') == ["u:Q a:A"]
