import contextlib
import io
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb_core.pool.json_rows import holds_array, json_array_rows, json_line_rows
from clusterucb_core.pool.quarantine import MAX_ROW_BYTES, RAW_BYTES, BadRow, BrokenContainer, RawRow


class OneByteStream(io.BytesIO):
    """Gives one byte a read, so that every chunk border is met."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(1)


def _seen(rows: object) -> list[object]:
    """Return values of good rows and reasons of bad ones."""
    return [row.value if isinstance(row, RawRow) else str(row.reason) for row in rows]  # type: ignore[attr-defined]


def _lines(data: bytes) -> list[object]:
    return _seen(json_line_rows(io.BytesIO(data)))


def _array(data: bytes) -> list[object]:
    whole = _seen(json_array_rows(io.BytesIO(data)))
    assert _seen(json_array_rows(OneByteStream(data))) == whole
    return whole


BAD_VALUES = [
    (b'{"a": 1', "invalid_json"),
    (b'{"a": "\xff"}', "not_utf8"),
    (b'{"a": "\x00"}', "nul_character"),
    (b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "too_deep"),
    (b'{"a": ' + b"1" * 5000 + b"}", "invalid_json"),
    (b"nonsense", "invalid_json"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_VALUES)
def test_a_bad_line_is_named_and_its_neighbours_stay(bad: bytes, reason: str) -> None:
    assert _lines(b'{"n": 1}\n' + bad + b'\n{"n": 2}\n') == [{"n": 1}, reason, {"n": 2}]


# An element that is never closed takes the rest of the array with it: the first of BAD_VALUES.
@pytest.mark.parametrize(("bad", "reason"), BAD_VALUES[1:])
def test_a_bad_element_is_named_and_its_neighbours_stay(bad: bytes, reason: str) -> None:
    rows = json_array_rows(io.BytesIO(b'[{"n": 1},' + bad + b',\n {"n": 2}]'))
    assert _seen(rows) == [{"n": 1}, reason, {"n": 2}]


@pytest.mark.parametrize(
    "bad",
    [b'{"a": ]}', b'{"a": [1}', b'"a": 1}', b'{"a": "x}\n', b'{"a" 1}', b'{"a: 1}\n'],
)
def test_an_element_with_wrong_marks_costs_only_itself(bad: bytes) -> None:
    assert _array(b'[{"n": 1},\n' + bad + b',\n{"n": 2}]') == [{"n": 1}, "invalid_json", {"n": 2}]


def test_a_newline_inside_a_text_costs_only_its_element() -> None:
    bad = ["invalid_json", "invalid_json"]
    assert _array(b'[{"n": 1},\n{"a": "line\nbreak"},\n{"n": 2}]') == [{"n": 1}, *bad, {"n": 2}]


def test_lines_end_at_newlines_only_and_blank_ones_are_no_rows() -> None:
    rows = list(json_line_rows(io.BytesIO('\ufeff{"a": "x\u2028y\x85z"}\r\n\n  \n{"a": 2}'.encode())))
    assert _seen(rows) == [{"a": "x\u2028y\x85z"}, {"a": 2}]
    assert [row.number for row in rows if isinstance(row, RawRow)] == [1, 4]


def test_a_line_of_ten_megabytes_is_cut_and_its_neighbours_stay() -> None:
    data = b'{"n": 1}\n{"a": "' + b"x" * 10_000_000 + b'"}\n{"n": 2}'
    rows = list(json_line_rows(io.BytesIO(data)))
    assert _seen(rows) == [{"n": 1}, "row_too_long", {"n": 2}]
    assert isinstance(rows[1], BadRow)
    assert len(rows[1].raw) == RAW_BYTES


def test_an_element_of_ten_megabytes_is_cut_and_its_neighbours_stay() -> None:
    data = b'[{"n": 1},{"a": "' + b"x" * 10_000_000 + b'"},{"n": 2}]'
    rows = list(json_array_rows(io.BytesIO(data)))
    assert _seen(rows) == [{"n": 1}, "row_too_long", {"n": 2}]


def test_a_line_of_exactly_the_limit_is_read() -> None:
    head, tail = b'{"a":"', b'"}'
    line = head + b"x" * (MAX_ROW_BYTES - len(head) - len(tail)) + tail
    assert [type(row) for row in json_line_rows(io.BytesIO(line + b"\n" + line))] == [RawRow, RawRow]


@pytest.mark.parametrize("data", [b"[]", b" [ \n ] \n", b"\xef\xbb\xbf[]"])
def test_an_empty_array_has_no_rows(data: bytes) -> None:
    assert _array(data) == []


def test_a_comma_too_many_makes_no_row() -> None:
    assert _array(b'[, {"n": 1},, {"n": 2}, ]') == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"", "not closed"),
        (b', {"n": 2', "not closed"),
        (b"] x", "follows the end"),
        (b"][1]", "follows the end"),
    ],
)
def test_a_broken_end_leaves_the_rows_before_it(tail: bytes, message: str) -> None:
    seen: list[object] = []
    with pytest.raises(BrokenContainer, match=message):
        seen.extend(row.value for row in json_array_rows(io.BytesIO(b'[{"n": 0},{"n": 1}' + tail)))  # type: ignore
    assert seen[0] == {"n": 0}


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"[1]", True), (b"\xef\xbb\xbf [", True), (b"\n\n  [", True), (b'{"a": 1}', False), (b"", False)],
)
def test_an_array_shows_in_its_first_character(data: bytes, expected: bool) -> None:
    assert holds_array(io.BytesIO(data)) is expected


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(values=st.lists(JSON_VALUES), indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_any_array_is_cut_as_a_json_parser_reads_it(
    values: list[object], indent: int | None, ascii_only: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    assert _array(data) == values


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=60), noise=st.lists(st.sampled_from(list(b'[]{}",\\\n:1')), max_size=60))
def test_no_bytes_make_the_scan_fail_in_another_way(data: bytes, noise: list[int]) -> None:
    for content in (data, bytes(noise)):
        with contextlib.suppress(BrokenContainer):
            _seen(json_array_rows(io.BytesIO(b"[" + content)))
        assert all(isinstance(row, RawRow | BadRow) for row in json_line_rows(io.BytesIO(content)))


def test_brackets_that_never_pair_take_no_time_by_their_square() -> None:
    began = time.process_time()
    with pytest.raises(BrokenContainer, match="the array is not closed"):
        list(json_array_rows(io.BytesIO(b"[" + b"[" * 300_000 + b"}" * 100_000)))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("depth", [4095, 4096, 4097, 60_000])
def test_an_element_deeper_than_the_scan_keeps_count_of_costs_no_other(depth: int) -> None:
    array = b"[1," + b"[" * depth + b"]" * depth + b',"a"]'
    assert _seen(json_array_rows(io.BytesIO(array))) == [1, "too_deep", "a"]


def test_an_array_of_commas_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusterucb_core.pool.lines.MAX_STRETCH_LINES", 1000)
    with pytest.raises(BrokenContainer, match="no row ends within"):
        list(json_array_rows(io.BytesIO(b"[" + b"," * 1001)))
