"""Reading files as bytes, whatever container they lie in: plain, gzip or zstandard."""

import gzip
from pathlib import Path
from typing import BinaryIO, cast

import zstandard


def inner_suffix(path: Path) -> str:
    """Return the suffix below a compression suffix, in lower case: `.jsonl` for `pool.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading its decompressed bytes.

    Args:
        path: a plain file, or one that ends in `.gz` or `.zst`.

    Returns:
        A binary stream. Reading a damaged container raises `EOFError`, `gzip.BadGzipFile`, `zlib.error` or
        `zstandard.ZstdError`; the caller says which source it was.
    """
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".zst":
            return cast(BinaryIO, zstandard.open(path, "rb"))
        case _:
            return path.open("rb")
