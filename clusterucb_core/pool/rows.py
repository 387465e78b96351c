"""The rows of one pool file, whatever container it is: JSON lines, JSON, CSV, TSV, Parquet."""

import gzip
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import zstandard

from clusterucb_core.containers import inner_suffix, open_bytes
from clusterucb_core.errors import InvalidPool
from clusterucb_core.pool.bounded_stream import BoundedStream
from clusterucb_core.pool.delimited_rows import csv_rows, tsv_rows
from clusterucb_core.pool.json_rows import holds_array, json_array_rows, json_line_rows
from clusterucb_core.pool.parquet_rows import parquet_rows
from clusterucb_core.pool.quarantine import BadRow, BrokenContainer, RawRow, Reason, bad_row

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError, BrokenContainer)


def read_rows(
    path: Path, *, columns: Collection[str], is_header: Callable[[Sequence[str]], bool]
) -> Iterator[RawRow | BadRow]:
    """Give the rows of a file as its container holds them, in bounded memory.

    A container that breaks off gives its rows so far and one last `broken_container` record; so does one in
    which no row ends within `MAX_STRETCH_BYTES`.

    Args:
        path: a file with one of `SUFFIXES`, perhaps with `.gz` or `.zst` after it.
        columns: the columns worth reading from a Parquet file.
        is_header: whether the first row of a TSV file, in lower case, names its columns.

    Raises:
        InvalidPool: the suffix is unknown, or the file cannot be read.
    """
    number = 0
    try:
        for row in _container_rows(path, columns, is_header):
            number = row.row_number if isinstance(row, BadRow) else row.number
            yield row
    except _DAMAGE as error:
        raw = error.raw if isinstance(error, BrokenContainer) else b""
        detail = f"nothing can be read after row {number}: {error}; fetch the file again"
        yield bad_row(number + 1, Reason.BROKEN_CONTAINER, detail, raw=raw)
    except OSError as error:
        raise InvalidPool(f"{path} cannot be read: {error}; check its permissions and its disk") from error


def _container_rows(
    path: Path, columns: Collection[str], is_header: Callable[[Sequence[str]], bool]
) -> Iterator[RawRow | BadRow]:
    suffix = inner_suffix(path)
    if suffix == ".parquet":
        yield from parquet_rows(path, columns)
        return
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise InvalidPool(f"{path} has the suffix {suffix!r}; known are {known}, also with .gz or .zst")
    is_array = suffix == ".json" and _holds_array(path)
    with open_bytes(path) as plain:
        bounded = BoundedStream(plain)
        stream = bounded.buffered()
        match suffix:
            case ".csv":
                rows = csv_rows(stream)
            case ".tsv":
                rows = tsv_rows(stream, is_header)
            case _:
                rows = json_array_rows(stream) if is_array else json_line_rows(stream)
        for row in rows:
            bounded.row_ended()
            yield row


def _holds_array(path: Path) -> bool:
    with open_bytes(path) as stream:
        return holds_array(BoundedStream(stream).buffered())
