"""Rows of CSV and TSV files.

CSV: commas, a header row, fields with commas or newlines between double quotes (RFC 4180). TSV: tabs, one
line a row, a double quote is plain text, the header row is optional.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from clusterucb_core.pool.lines import Line, check_stretch, decode, read_lines, too_long
from clusterucb_core.pool.quarantine import MAX_ROW_BYTES, BadRow, RawRow, Reason, Unusable, bad_row

# Lines are held until their quote closes, and the shortest take a hundred bytes each.
_MAX_RECORD_LINES = 200_000
_REST_OF_QUOTED = re.compile(rb'([^"]*(?:""[^"]*)*)"(?!")')


@dataclass(frozen=True, slots=True)
class _Record:
    number: int
    fields: list[str]
    raw: bytes


@dataclass(slots=True)
class _Taken:
    """What has been read of a record: lines that are kept, lines and bytes of all, and where it stands."""

    lines: list[Line] = field(default_factory=list[Line])
    count: int = 0
    size: int = 0
    is_open: bool = False
    is_long: bool = False


def csv_rows(stream: BinaryIO) -> Iterator[RawRow | BadRow]:
    """Give the rows of a CSV file, named by its first row."""
    return _named(_csv_records(stream), is_header=lambda _: True)


def tsv_rows(stream: BinaryIO, is_header: Callable[[Sequence[str]], bool]) -> Iterator[RawRow | BadRow]:
    """Give the rows of a TSV file: named where its first row is a header, else tuples of columns."""
    return _named(_tsv_records(stream), is_header=is_header)


def _named(
    records: Iterator[_Record | BadRow], *, is_header: Callable[[Sequence[str]], bool]
) -> Iterator[RawRow | BadRow]:
    names: list[str] | None = None
    first = True
    for record in records:
        if isinstance(record, BadRow):
            yield record
            continue
        if first:
            first = False
            header = [name.strip().lower() for name in record.fields]
            if is_header(header):
                names = header
                continue
        yield _named_row(record, names)


def _named_row(record: _Record, names: list[str] | None) -> RawRow | BadRow:
    if names is None:
        return RawRow(record.number, tuple(record.fields), record.raw)
    if len(record.fields) != len(names):
        detail = f"{len(record.fields)} columns where the header has {len(names)}"
        return bad_row(record.number, Reason.WRONG_COLUMN_COUNT, detail, raw=record.raw)
    return RawRow(record.number, dict(zip(names, record.fields, strict=True)), record.raw)


def _tsv_records(stream: BinaryIO) -> Iterator[_Record | BadRow]:
    for line in read_lines(stream):
        if line.complete:
            data = line.data.removesuffix(b"\r")
            yield _record(line.number, data.split(b"\t"), data)
        else:
            yield too_long(line.number, line.data)


def _csv_records(stream: BinaryIO) -> Iterator[_Record | BadRow]:
    lines = read_lines(stream, keep_blank=True)
    again: deque[Line] = deque()
    closes = True
    while True:
        taken = _take_record(again, lines, closes=closes)
        if not taken.lines:
            return
        number, data = taken.lines[0].number, b"\n".join(line.data for line in taken.lines)
        if taken.is_open and taken.is_long:
            detail = f"a quote that is never closed; the {taken.count - 1} lines after it are lost: close it"
            yield bad_row(number, Reason.INVALID_CSV, detail, raw=data)
        elif taken.is_long:
            yield too_long(number, data)
        elif taken.is_open:
            # Nothing closes the quote before the file ends: it was a stray one, the other lines are rows.
            yield bad_row(number, Reason.INVALID_CSV, "a quote that is never closed", raw=taken.lines[0].data)
            again.extend(taken.lines[1:])
            closes = False
        elif data.strip():
            data = data.removesuffix(b"\r")
            yield _record(number, _split_csv(data), data)


def _take_record(again: deque[Line], lines: Iterator[Line], *, closes: bool) -> _Taken:
    """Return the lines of the next record; of a long one only the beginning is kept.

    Args:
        again: lines that were read before and go first.
        lines: the lines to read.
        closes: whether any line may close a quote that an earlier one opened; it is false for the lines after
            one whose quote stayed open up to the end of the file.
    """
    taken = _Taken()
    while line := again.popleft() if again else next(lines, None):
        taken.is_open = line.complete and _open_after(line.data, taken.is_open)
        if not taken.is_long:
            taken.lines.append(line)
        taken.count += 1
        check_stretch(taken.count)
        taken.size += len(line.data) + 1
        taken.is_long |= taken.size > MAX_ROW_BYTES or taken.count > _MAX_RECORD_LINES or not line.complete
        if not (taken.is_open and closes):
            break
    return taken


def _open_after(line: bytes, is_open: bool) -> bool:
    """Return whether a quoted field is open after a line. A quote inside an unquoted field is text."""
    if b'"' not in line:
        return is_open
    at = 0
    while True:
        if is_open:
            closing = _REST_OF_QUOTED.match(line, at)
            if closing is None:
                return True
            at = closing.end()
        elif line.startswith(b'"', at):
            is_open, at = True, at + 1
            continue
        comma = line.find(b",", at)
        if comma < 0:
            return False
        is_open, at = False, comma + 1


def _split_csv(data: bytes) -> list[bytes]:
    """Return the fields of a record in which every quote is closed."""
    if b'"' not in data:
        return data.split(b",")
    fields: list[bytes] = []
    at = 0
    while True:
        quoted = _REST_OF_QUOTED.match(data, at + 1) if data.startswith(b'"', at) else None
        text = quoted[1].replace(b'""', b'"') if quoted else b""
        at = quoted.end() if quoted else at
        comma = data.find(b",", at)
        fields.append(text + data[at : comma if comma >= 0 else None])
        if comma < 0:
            return fields
        at = comma + 1


def _record(number: int, fields: list[bytes], raw: bytes) -> _Record | BadRow:
    try:
        decode(raw)
        return _Record(number, [field.decode() for field in fields], raw)
    except Unusable as finding:
        return bad_row(number, finding.reason, finding.detail, raw=raw)
