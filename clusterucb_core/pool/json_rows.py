"""Rows of JSON lines and of one JSON array, each parsed for itself so that a bad one costs no other.

An array is cut into its elements by a scan for brackets and quotes; only then is an element decoded. A
streaming JSON parser would stop for good at the first wrong byte, and would hold a row of any length.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from clusterucb_core.pool.lines import BYTE_ORDER_MARK, check_stretch, decode, read_lines, too_long
from clusterucb_core.pool.quarantine import (
    MAX_ROW_BYTES,
    RAW_BYTES,
    BadRow,
    BrokenContainer,
    RawRow,
    Reason,
    Unusable,
    bad_row,
)

_CHUNK_BYTES = 1 << 16
# Far deeper than the parser goes: how brackets pair below it does not matter, only that they are few to hold.
_MAX_DEPTH = 4096
_OUTSIDE_TEXT = re.compile(rb'["\[\]{},]')
# A newline cannot stand in a JSON text: where it does, a quote is missing, and the element ends there.
_INSIDE_TEXT = re.compile(rb'["\\\n]')
_OPENER = {ord("]"): ord("["), ord("}"): ord("{")}


def holds_array(stream: BinaryIO) -> bool:
    """Return whether the first character of a stream, white space aside, opens a JSON array."""
    # One read at a time: of a container that is cut short, what comes before the cut is given.
    buffered = cast("io.BufferedReader", stream)
    head = buffered.read1(_CHUNK_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip()
    while not head and (chunk := buffered.read1(_CHUNK_BYTES)):
        head = chunk.lstrip()
    return head.startswith(b"[")


def json_line_rows(stream: BinaryIO) -> Iterator[RawRow | BadRow]:
    """Give each line of a stream as a parsed JSON value."""
    for line in read_lines(stream):
        yield parse_row(line.number, line.data) if line.complete else too_long(line.number, line.data)


def json_array_rows(stream: BinaryIO) -> Iterator[RawRow | BadRow]:
    """Give each element of the JSON array that a stream holds.

    Raises:
        BrokenContainer: the array is not closed, or text follows it; the rows before have been given.
    """
    while stream.read(1) != b"[":
        pass
    for number, element in enumerate(_elements(stream), start=1):
        if element.length > MAX_ROW_BYTES:
            yield too_long(number, bytes(element.data))
        else:
            yield parse_row(number, bytes(element.data).strip())


def parse_row(number: int, data: bytes) -> RawRow | BadRow:
    """Return the row of one JSON text, or the record of why it is none."""
    try:
        return RawRow(number, json.loads(decode(data)), data)
    except Unusable as finding:
        return bad_row(number, finding.reason, finding.detail, raw=data)
    except RecursionError:
        return bad_row(number, Reason.TOO_DEEP, "values nested too deeply to be parsed", raw=data)
    except ValueError as error:  # also raised for a number of thousands of digits
        return bad_row(number, Reason.INVALID_JSON, str(error), raw=data)


@dataclass(slots=True)
class _Element:
    """What has been read of one array element: its length, and its bytes as far as they are kept."""

    data: bytearray = field(default_factory=bytearray)
    length: int = 0

    def add(self, piece: bytes) -> None:
        self.length += len(piece)
        if self.length <= MAX_ROW_BYTES:
            self.data += piece
        else:
            self.data = (self.data + piece)[:RAW_BYTES]

    def is_blank(self) -> bool:
        return not self.data.strip()


@dataclass(slots=True)
class _Scan:
    """Where the scan stands: brackets open inside the element, inside a text or not, the array's end.

    Of the brackets deeper than `_MAX_DEPTH` only the count is kept.
    """

    brackets: bytearray = field(default_factory=bytearray)
    deeper: int = 0
    in_text: bool = False
    skip: int = 0
    closed: bool = False


def _elements(stream: BinaryIO) -> Iterator[_Element]:
    scan, element, count, blank = _Scan(), _Element(), 0, 0
    buffered = cast("io.BufferedReader", stream)
    while chunk := buffered.read1(_CHUNK_BYTES):
        start = 0
        for cut in _cuts(chunk, scan):
            element.add(chunk[start:cut])
            start = cut + 1
            if element.is_blank():
                blank += 1
                check_stretch(blank)
            else:
                count += 1
                blank = 0
                yield element
            element = _Element()
        element.add(chunk[start:])
    if scan.closed and not element.is_blank():
        raise BrokenContainer("text follows the end of the array; keep one array a file", bytes(element.data))
    if not scan.closed:
        raise BrokenContainer(
            f"the array is not closed; it ends in or after row {count + 1}", bytes(element.data)
        )


def _cuts(chunk: bytes, scan: _Scan) -> Iterator[int]:
    """Give the positions of the marks that end an element, and carry the scan over to the next chunk."""
    at = scan.skip
    while not scan.closed:
        found = (_INSIDE_TEXT if scan.in_text else _OUTSIDE_TEXT).search(chunk, at)
        if found is None:
            break
        at = found.end()
        match chunk[found.start() : at]:
            case b"\\":
                at += 1
            case b'"':
                scan.in_text = not scan.in_text
            case b"\n":
                scan.in_text = False
                scan.brackets.clear()
                scan.deeper = 0
                yield found.start()
            case b"," if not scan.brackets:
                yield found.start()
            case b"[" | b"{" as opener:
                if len(scan.brackets) < _MAX_DEPTH:
                    scan.brackets += opener
                else:
                    scan.deeper += 1
            case b"]" if not scan.brackets:
                scan.closed = True
                yield found.start()
            case b"]" | b"}" if scan.deeper:
                scan.deeper -= 1
            case b"]" | b"}" as closer:
                _close(scan.brackets, _OPENER[closer[0]])
            case _:
                pass
    scan.skip = max(0, at - len(chunk))


def _close(brackets: bytearray, opener: int) -> None:
    """Take the innermost such bracket off, with those inside it that were never closed."""
    if opener in brackets:
        del brackets[brackets.rindex(opener) :]
