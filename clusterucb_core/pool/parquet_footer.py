"""What a Parquet file says of its columns, read from its footer before PyArrow unfolds anything.

PyArrow gives the same facts, but a damaged footer ends the whole process there. The footer is a record in
Thrift's compact form (github.com/apache/thrift, doc/specs/thrift-compact-protocol.md); its fields are those
of `FileMetaData` in github.com/apache/parquet-format, src/main/thrift/parquet.thrift.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from clusterucb_core.pool.quarantine import BrokenContainer

_TAIL_BYTES, _PAGE_HEAD_BYTES = 8, 64
_ROW_GROUPS, _COLUMNS, _ROWS, _COLUMN = 4, 1, 3, 3
_PATH, _VALUES, _DATA_OFFSET, _DICTIONARY_OFFSET = 3, 5, 9, 11
_PAGE_KIND, _PAGE_SIZE = 1, 2
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)

Struct = dict[int, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of one row group: its first name, values and rows, its first page's kind and full size."""

    name: str
    values: int
    rows: int
    page_kind: int
    page_bytes: int


def columns(stream: BinaryIO) -> Iterator[Column]:
    """Give every column of every row group of a Parquet file.

    Raises:
        BrokenContainer: the footer is no such record.
    """
    try:
        for group in _footer(stream).get(_ROW_GROUPS, []):
            for chunk in group[_COLUMNS]:
                yield _column(stream, chunk[_COLUMN], group[_ROWS])
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise BrokenContainer(
            f"the footer of the Parquet file is damaged ({type(error).__name__})"
        ) from error


def _footer(stream: BinaryIO) -> Struct:
    end = stream.seek(0, 2)
    stream.seek(max(0, end - _TAIL_BYTES))
    size = int.from_bytes(stream.read(4), "little")
    stream.seek(max(0, end - _TAIL_BYTES - size))
    return _struct(stream.read(size), 0)[0]


def _column(stream: BinaryIO, facts: Struct, rows: int) -> Column:
    offsets = [facts[field] for field in (_DATA_OFFSET, _DICTIONARY_OFFSET) if facts.get(field)]
    stream.seek(min(offsets))
    page, _ = _struct(stream.read(_PAGE_HEAD_BYTES), 0, last=_PAGE_SIZE)
    name = cast("bytes", facts[_PATH][0]).decode()
    numbers = (facts[_VALUES], rows, page[_PAGE_KIND], page[_PAGE_SIZE])
    if not all(type(number) is int for number in numbers):
        raise TypeError(f"a count is {numbers}")
    return Column(name, *numbers)


def _struct(data: bytes, at: int, *, last: int | None = None) -> tuple[Struct, int]:
    """Return the fields of a record by number, and where it ends; `last`: the last field that is wanted."""
    fields: Struct = {}
    number = 0
    while (head := data[at]) and number != last:
        at += 1
        if step := head >> 4:
            number += step
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, head & 15)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind in _INTEGERS:
        return _integer(data, at)
    if kind == _BINARY:
        size, at = _varint(data, at)
        return data[at : at + size], at + size
    if kind in (_LIST, _SET):
        return _items(data, at)
    if kind == _STRUCT:
        return _struct(data, at)
    if kind in (_BYTE, _DOUBLE):
        return None, at + (1 if kind == _BYTE else 8)
    raise ValueError(f"a field of kind {kind}")  # a map: the footer has none


def _items(data: bytes, at: int) -> tuple[list[Any], int]:
    head, at = data[at], at + 1
    size, kind = head >> 4, head & 15
    if size == 15:
        size, at = _varint(data, at)
    items: list[Any] = []
    for _ in range(size):
        # a boolean in a list takes a byte; as a field it is in the head
        item, at = (data[at] == _TRUE, at + 1) if kind in (_TRUE, _FALSE) else _value(data, at, kind)
        items.append(item)
    return items, at


def _integer(data: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
