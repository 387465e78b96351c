import io

import pytest

from clusterucb_core.pool.lines import Line, decode, read_lines
from clusterucb_core.pool.quarantine import MAX_ROW_BYTES, RAW_BYTES, BrokenContainer, Unusable


def test_a_long_line_is_skipped_to_its_end() -> None:
    lines = list(read_lines(io.BytesIO(b"x" * (3 * MAX_ROW_BYTES) + b"\nnext")))
    assert lines == [Line(1, b"x" * RAW_BYTES, complete=False), Line(2, b"next")]


def test_only_the_first_line_can_start_with_a_byte_order_mark() -> None:
    mark = b"\xef\xbb\xbf"
    assert [line.data for line in read_lines(io.BytesIO(mark + b"a\n" + mark + b"b"))] == [b"a", mark + b"b"]


def test_blank_lines_are_counted_and_given_on_request() -> None:
    assert [line.number for line in read_lines(io.BytesIO(b"a\n\n \nb"))] == [1, 4]
    assert [line.number for line in read_lines(io.BytesIO(b"a\n\n \nb"), keep_blank=True)] == [1, 2, 3, 4]


def test_the_place_of_a_wrong_byte_is_named() -> None:
    with pytest.raises(Unusable, match="0xff at byte 2"):
        decode(b"ab\xff")
    with pytest.raises(Unusable, match="NUL byte at byte 1"):
        decode(b"a\x00")


def test_a_file_of_line_breaks_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusterucb_core.pool.lines.MAX_STRETCH_LINES", 1000)
    stream = io.BytesIO(b"1\n" + b"\n" * 1000 + b"2\n")
    assert [line.data for line in read_lines(stream)] == [b"1", b"2"]
    with pytest.raises(BrokenContainer, match="no row ends within 1000 lines"):
        list(read_lines(io.BytesIO(b"\n" * 1001)))
