import contextlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb_core.pool.parquet_footer import columns
from clusterucb_core.pool.quarantine import BrokenContainer


def _file(**options: object) -> bytes:
    file = io.BytesIO()
    turns = [[{"role": "user", "content": "Q"}] * 3] * 50
    pq.write_table(pa.table({"prompt": ["Q"] * 50, "messages": turns, "n": list(range(50))}), file, **options)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False}, {"row_group_size": 7, "compression": "zstd"}]
)
def test_names_values_and_rows_are_those_that_pyarrow_gives(options: dict[str, object]) -> None:
    data = _file(**options)
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    expected = [
        (
            column.path_in_schema.split(".")[0],
            column.num_values,
            group.num_rows,
            2 * column.has_dictionary_page,
        )
        for group in groups
        for column in (group.column(place) for place in range(group.num_columns))
    ]
    found = list(columns(io.BytesIO(data)))
    assert [(c.name, c.values, c.rows, c.page_kind) for c in found] == expected
    assert all(0 < column.page_bytes < 2000 for column in found)


def test_a_count_that_is_no_number_is_a_broken_container() -> None:
    data = _file(row_group_size=50)
    # RowGroup.num_rows, the number 50 as zigzag after the head of field 3, becomes an empty text
    at = data.rindex(b"\x16\x64", 0, len(data) - 8)
    assert data[at : at + 2] == b"\x16\x64"
    broken = data[:at] + b"\x18\x00" + data[at + 2 :]
    with pytest.raises(BrokenContainer, match=r"TypeError|IndexError|KeyError|ValueError"):
        list(columns(io.BytesIO(broken)))


WHOLE = _file()


@settings(deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.integers(0, 40),
)
def test_a_damaged_footer_is_a_broken_container_and_nothing_else(
    flips: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(WHOLE)
    for back, byte in flips:
        data[-1 - back % len(data)] = byte
    with contextlib.suppress(BrokenContainer):  # nothing else may be raised
        assert all(
            isinstance(column.name, str) for column in columns(io.BytesIO(bytes(data[: len(data) - cut])))
        )
