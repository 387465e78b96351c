"""Rows of Parquet files, read a few at a time and only in the columns that a shape knows."""

# PyArrow ships no types: what it returns is narrowed here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from clusterucb_core.containers import COMPRESSION_SUFFIXES, open_bytes
from clusterucb_core.pool.lines import too_long
from clusterucb_core.pool.parquet_footer import columns as columns_of
from clusterucb_core.pool.quarantine import MAX_ROW_BYTES, BadRow, BrokenContainer, RawRow, Reason, bad_row

_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20
# Parquet is compressed by itself: what unfolds further than this was made to fill the disk.
_MOST_UNFOLDED, _UNFOLDED_FREELY = 100, 64 * 1024 * 1024
# Writers end a dictionary at about one megabyte and a page soon after; a row is a conversation.
_MAX_DICTIONARY_BYTES, _MAX_PAGE_BYTES, _MAX_ROW_VALUES = 8 * 1024 * 1024, 512 * 1024 * 1024, 100_000
# More than the longest row takes, at four bytes a character; a batch beyond it becomes Python's row by row.
_MAX_BATCH_BYTES = 4 * MAX_ROW_BYTES + (1 << 20)
_DICTIONARY_PAGE = 2
# What a value may fail with on its way into Python: not UTF-8, a time after the year 9999, no zone.
_UNREADABLE = (ValueError, OverflowError, LookupError, pa.ArrowException)


def parquet_rows(path: Path, columns: Collection[str]) -> Iterator[RawRow | BadRow]:
    """Give each row of a Parquet file; a column outside `columns` keeps its name and loses its values.

    Raises:
        BrokenContainer: the file is damaged; the rows before have been given.
    """
    with _seekable(path) as stream:
        try:
            file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            names = cast("list[str]", file.schema_arrow.names)
            wanted = [name for name in names if name in columns]
            _refuse_bombs(stream, wanted)
            number = 1
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                yield from _batch_rows(batch, names, number)
                number += batch.num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            raise BrokenContainer(f"not a whole Parquet file: {error}") from error


def _refuse_bombs(stream: BinaryIO, wanted: Collection[str]) -> None:
    """Refuse a file in which a few bytes stand for more than a batch of rows may take.

    A dictionary holds each distinct value once, and every row that names it becomes a copy of its own.

    Raises:
        BrokenContainer: a dictionary, a page or the values of a row are beyond what writers make.
    """
    for column in columns_of(stream):
        if column.name not in wanted:
            continue
        if column.values > _MAX_ROW_VALUES * max(1, column.rows):
            raise BrokenContainer(f"{column.name} has {column.values} values in {column.rows} rows")
        is_dictionary = column.page_kind == _DICTIONARY_PAGE
        if not 0 <= column.page_bytes <= (_MAX_DICTIONARY_BYTES if is_dictionary else _MAX_PAGE_BYTES):
            raise BrokenContainer(
                f"{column.name} begins with a page that unfolds to {column.page_bytes} bytes"
            )


def _batch_rows(batch: Any, names: list[str], number: int) -> Iterator[RawRow | BadRow]:
    unread = dict.fromkeys(names)
    if batch.nbytes > _MAX_BATCH_BYTES:
        yield from _rows_one_by_one(batch, unread, number)
        return
    try:
        rows = batch.to_pylist()
    except _UNREADABLE:
        yield from _rows_one_by_one(batch, unread, number)
        return
    for offset, row in enumerate(rows):
        yield RawRow(number + offset, unread | row, b"")


def _rows_one_by_one(batch: Any, unread: dict[str, None], number: int) -> Iterator[RawRow | BadRow]:
    for offset in range(batch.num_rows):
        row = batch.slice(offset, 1)
        if row.nbytes > _MAX_BATCH_BYTES:
            yield too_long(number + offset, b"")
            continue
        try:
            yield RawRow(number + offset, unread | row.to_pylist()[0], b"")
        except UnicodeDecodeError as error:
            yield bad_row(number + offset, Reason.NOT_UTF8, str(error), raw=error.object)
        except _UNREADABLE as error:
            detail = f"a value that cannot be read: {error}; write its column as text"
            yield bad_row(number + offset, Reason.WRONG_TYPE, detail, raw=b"")


def _seekable(path: Path) -> BinaryIO:
    """Return a stream that Parquet's reader can seek in: a compressed file goes to the disk first."""
    if path.suffix.lower() not in COMPRESSION_SUFFIXES:
        return path.open("rb")
    most = _MOST_UNFOLDED * path.stat().st_size + _UNFOLDED_FREELY
    with ExitStack() as undo, open_bytes(path) as stream:
        plain = undo.enter_context(tempfile.TemporaryFile())
        while chunk := stream.read(_BUFFER_BYTES):
            plain.write(chunk)
            if plain.tell() > most:
                raise BrokenContainer(
                    f"it unfolds to more than {most} bytes, {_MOST_UNFOLDED} times its size"
                )
        plain.seek(0)
        undo.pop_all()
    return cast("BinaryIO", plain)
