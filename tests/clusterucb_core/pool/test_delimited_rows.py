import csv
import io
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb_core.pool.delimited_rows import csv_rows, tsv_rows
from clusterucb_core.pool.quarantine import BadRow, RawRow


def _seen(rows: object) -> list[object]:
    return [row.value if isinstance(row, RawRow) else str(row.reason) for row in rows]  # type: ignore[attr-defined]


def _csv(data: bytes) -> list[object]:
    return _seen(csv_rows(io.BytesIO(data)))


def _tsv(data: bytes, *, header: bool = False) -> list[object]:
    return _seen(tsv_rows(io.BytesIO(data), lambda _: header))


def _ab(a: str, b: str) -> dict[str, str]:
    return {"a": a, "b": b}


def test_the_first_row_names_the_columns_whatever_its_case() -> None:
    assert _csv(b"\xef\xbb\xbfA, b \r\n1,2\r\n") == [_ab("1", "2")]


def test_quoted_fields_hold_commas_quotes_and_newlines() -> None:
    assert _csv(b'a,b\n"x, ""y""\nz","2"\n3,4') == [_ab('x, "y"\nz', "2"), _ab("3", "4")]


def test_a_quote_inside_an_unquoted_field_is_text() -> None:
    assert _csv(b'a,b\n5" pipe,6"\n3,4') == [_ab('5" pipe', '6"'), _ab("3", "4")]


def test_a_quote_that_is_never_closed_costs_only_its_own_line() -> None:
    assert _csv(b'a,b\n1,2\n3,"4\n5,6\n7,8\n') == [_ab("1", "2"), "invalid_csv", _ab("5", "6"), _ab("7", "8")]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"1", "wrong_column_count"),
        (b"1,2,3", "wrong_column_count"),
        (b"1,\xff", "not_utf8"),
        (b"1,\x00", "nul_character"),
        (b'"' + b"x" * 5_000_000 + b'",2', "row_too_long"),
        (b'"' + (b"x" * 99 + b"\n") * 50_000 + b'",2', "row_too_long"),
    ],
)
def test_a_bad_row_is_named_and_its_neighbours_stay(bad: bytes, reason: str) -> None:
    assert _csv(b"a,b\n1,2\n" + bad + b"\n3,4\n") == [_ab("1", "2"), reason, _ab("3", "4")]


def test_rows_carry_the_number_of_the_line_where_they_start() -> None:
    rows = list(csv_rows(io.BytesIO(b'a,b\n"1\n1",2\n\n3,4\n5\n')))
    assert [row.row_number if isinstance(row, BadRow) else row.number for row in rows] == [2, 5, 6]


def test_fields_longer_than_the_csv_module_allows_are_read() -> None:
    assert _csv(b"a,b\n" + b"x" * 300_000 + b",2\n") == [_ab("x" * 300_000, "2")]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"a,b\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_gives_none(data: bytes) -> None:
    assert _csv(data) == []


def test_a_tsv_keeps_quotes_and_other_line_separators() -> None:
    assert _tsv('say "hi"\t"x\u2028y\n'.encode()) == [('say "hi"', '"x\u2028y')]


def test_a_tsv_with_a_header_has_named_rows() -> None:
    assert _tsv(b"A\tb\n1\t2\n3\n", header=True) == [_ab("1", "2"), "wrong_column_count"]


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_whatever_the_csv_module_writes_is_read_back(rows: list[tuple[str, str]]) -> None:
    rows = [(a.replace("\x00", ""), b.replace("\x00", "") + ".") for a, b in rows]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("a", "b"), *rows])
    assert _csv(text.getvalue().encode()) == [_ab(a, b) for a, b in rows]


@settings(deadline=None, max_examples=200)
@given(noise=st.lists(st.sampled_from(list(b'",\n\rax\xff\x00')), max_size=40))
def test_every_line_of_any_file_is_in_a_row_or_a_record(noise: list[int]) -> None:
    rows = csv_rows(io.BytesIO(b"a,b\n" + bytes(noise)))
    assert all(isinstance(row, RawRow | BadRow) for row in rows)


def test_lines_that_leave_a_quote_open_in_either_state_take_no_time_by_their_square() -> None:
    began = time.process_time()
    assert _csv(b"a,b\n" + b'x","y\n' * 30_000) == ["invalid_csv"] * 30_000
    assert time.process_time() - began < 5


def test_lines_lost_to_a_quote_far_from_the_end_of_the_file_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clusterucb_core.pool.delimited_rows._MAX_RECORD_LINES", 1000)
    (row,) = csv_rows(io.BytesIO(b'a,b\n1,"2\n' + b"3,4\n" * 1001))
    assert isinstance(row, BadRow)
    assert row.detail == "a quote that is never closed; the 1001 lines after it are lost: close it"
