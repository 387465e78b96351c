"""Reading files as bytes, whatever container they lie in: plain, gzip or zstandard."""

import gzip
import io
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

COMPRESSION_SUFFIXES = (".gz", ".zst")
# One KiB of zstandard data can unfold to about 32 MiB at the most, so this bounds what one read holds.
_ZSTD_CHUNK_BYTES = 1024


def inner_suffix(path: Path) -> str:
    """Return the suffix below a compression suffix, in lower case: `.jsonl` for `pool.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSION_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading its decompressed bytes.

    Args:
        path: a plain file, or one that ends in `.gz` or `.zst`; both may hold several frames in a row.

    Returns:
        A buffered binary stream, with `read1`. Reading a damaged container raises `EOFError`,
        `gzip.BadGzipFile`, `zlib.error` or `zstandard.ZstdError`; the caller says which source it was.
    """
    match path.suffix.lower():
        case ".gz":
            return cast("BinaryIO", gzip.open(path, "rb"))
        case ".zst":
            return cast("BinaryIO", io.BufferedReader(_ZstdFrames(path), 1 << 16))
        case _:
            return path.open("rb")


class _ZstdFrames(io.RawIOBase):
    """All frames of a zstandard file as one stream.

    The library's own stream reader stops after the first frame and takes a cut frame for the end of the
    file, so it would lose rows without a word.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._plain:
            if not self._compressed:
                self._compressed = self._file.read(_ZSTD_CHUNK_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the zstandard file ends inside a frame")
                return 0
            self._plain = memoryview(self._decompress())
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _decompress(self) -> bytes:
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        plain = self._frame.decompress(self._compressed)
        self._compressed = b""
        if self._frame.eof:
            self._compressed = self._frame.unused_data
            self._frame = None
        return plain
