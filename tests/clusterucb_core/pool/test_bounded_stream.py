import io

import pytest

from clusterucb_core.pool.bounded_stream import MAX_STRETCH_BYTES, BoundedStream
from clusterucb_core.pool.quarantine import BrokenContainer


def test_what_it_gives_is_what_the_other_stream_holds() -> None:
    data = bytes(range(256)) * 1000
    assert BoundedStream(io.BufferedReader(io.BytesIO(data))).buffered().read() == data  # type: ignore[arg-type]


def test_it_breaks_off_where_no_row_ends_for_too_long() -> None:
    bounded = BoundedStream(io.BufferedReader(io.BytesIO(b"x" * (MAX_STRETCH_BYTES + 1))))  # type: ignore[arg-type]
    with pytest.raises(BrokenContainer, match=f"no row ends within {MAX_STRETCH_BYTES} bytes"):
        bounded.buffered().read()


def test_the_end_of_a_row_begins_the_count_anew() -> None:
    bounded = BoundedStream(io.BufferedReader(io.BytesIO(b"x" * (2 * MAX_STRETCH_BYTES))))  # type: ignore[arg-type]
    stream = bounded.buffered()
    half = MAX_STRETCH_BYTES // 2
    for _ in range(4):
        assert len(stream.read(half)) == half
        bounded.row_ended()
