"""A byte stream that refuses to unfold without end: between two rows only so many bytes may be read."""

import io
from typing import BinaryIO, cast

from clusterucb_core.pool.quarantine import BrokenContainer

# Four rows of the greatest length; a few kilobytes of gzip or zstandard can hold gigabytes of one byte.
MAX_STRETCH_BYTES = 16 * 1024 * 1024
_BUFFER_BYTES = 1 << 16


class BoundedStream(io.RawIOBase):
    """Reads another stream, and breaks off where no row ends within `MAX_STRETCH_BYTES`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = cast("io.BufferedReader", stream)
        self._since_row = 0

    def readable(self) -> bool:
        """Return true: that is what it is for."""
        return True

    def row_ended(self) -> None:
        """Begin to count anew."""
        self._since_row = 0

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill a buffer with what one read gives.

        Raises:
            BrokenContainer: too many bytes have been read since the last row ended.
        """
        count = self._stream.readinto1(buffer)
        self._since_row += count
        if self._since_row > MAX_STRETCH_BYTES:
            raise BrokenContainer(
                f"no row ends within {MAX_STRETCH_BYTES} bytes; give every row a line of its own, "
                "or look whether the file is a decompression bomb"
            )
        return count

    def buffered(self) -> BinaryIO:
        """Return this stream with a buffer before it, as the readers of rows want it."""
        return io.BufferedReader(self, _BUFFER_BYTES)
