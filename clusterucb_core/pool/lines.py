"""Lines of a byte stream, split on the newline only and bounded in length."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from clusterucb_core.pool.quarantine import (
    MAX_ROW_BYTES,
    RAW_BYTES,
    BadRow,
    BrokenContainer,
    Reason,
    Unusable,
    bad_row,
)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A file of line breaks would keep the readers busy for minutes and give no row.
MAX_STRETCH_LINES = 2_000_000


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its newline; a line above `MAX_ROW_BYTES` is cut and `complete` is false."""

    number: int
    data: bytes
    complete: bool = True


def read_lines(stream: BinaryIO, *, keep_blank: bool = False) -> Iterator[Line]:
    r"""Give the lines that are not blank (or all), numbered from 1 with the blank ones counted.

    Only `\n` ends a line: other Unicode line separators are text, and a `\r` before it stays for the caller.
    A byte order mark at the start of the stream is skipped.

    Raises:
        BrokenContainer: more than `MAX_STRETCH_LINES` lines in a row are blank.
    """
    number = filled = 0
    while data := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if number == 1:
            data = data.removeprefix(BYTE_ORDER_MARK)
        if len(data) > MAX_ROW_BYTES and not data.endswith(b"\n"):
            _skip_to_newline(stream)
            yield Line(number, data[:RAW_BYTES], complete=False)
            continue
        data = data.removesuffix(b"\n")
        if data.strip():
            filled = number
            yield Line(number, data)
            continue
        check_stretch(number - filled)
        if keep_blank:
            yield Line(number, data)


def check_stretch(lines: int) -> None:
    """Break a container off in which so many lines have gone by without a row.

    Raises:
        BrokenContainer: they are more than `MAX_STRETCH_LINES`.
    """
    if lines > MAX_STRETCH_LINES:
        raise BrokenContainer(
            f"no row ends within {MAX_STRETCH_LINES} lines; look whether the file is damaged"
        )


def too_long(number: int, data: bytes) -> BadRow:
    """Return the quarantine record of a row above `MAX_ROW_BYTES`."""
    detail = f"the row has more than {MAX_ROW_BYTES} bytes; split it or leave it out"
    return bad_row(number, Reason.ROW_TOO_LONG, detail, raw=data)


def decode(data: bytes) -> str:
    """Return the text of UTF-8 bytes.

    Raises:
        Unusable: the bytes hold a NUL or are not UTF-8.
    """
    if b"\x00" in data:
        raise Unusable(Reason.NUL_CHARACTER, f"a NUL byte at byte {data.index(0)} of the row")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte 0x{data[error.start]:02x} at byte {error.start} of the row; save the file as UTF-8"
        raise Unusable(Reason.NOT_UTF8, detail) from error


def _skip_to_newline(stream: BinaryIO) -> None:
    while chunk := stream.readline(1 << 16):
        if chunk.endswith(b"\n"):
            return
