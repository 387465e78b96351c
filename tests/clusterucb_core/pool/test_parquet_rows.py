import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clusterucb_core.pool.parquet_rows import parquet_rows
from clusterucb_core.pool.quarantine import BrokenContainer, RawRow, Reason


def _write(path: Path, columns: dict[str, object], **options: object) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_rows_come_in_order_with_their_numbers(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"prompt": [f"p{n}" for n in range(200)]}, row_group_size=70)
    rows = [row for row in parquet_rows(path, ["prompt"]) if isinstance(row, RawRow)]
    assert [(row.number, row.value) for row in rows] == [(n + 1, {"prompt": f"p{n}"}) for n in range(200)]


def test_other_columns_keep_their_name_only(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"prompt": ["p"], "embedding": [[0.5] * 8]})
    (row,) = parquet_rows(path, ["prompt", "completion"])
    assert isinstance(row, RawRow)
    assert row.value == {"prompt": "p", "embedding": None}


def test_without_a_known_column_the_names_can_still_be_shown(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"text": ["x", "y"]})
    assert [row.value for row in parquet_rows(path, ["prompt"]) if isinstance(row, RawRow)] == [
        {"text": None}
    ] * 2


def test_text_that_is_not_utf8_costs_only_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"\xffz", b"c"])
    bad = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    path = _write(tmp_path / "a.parquet", {"prompt": bad})
    first, second, third = parquet_rows(path, ["prompt"])
    assert isinstance(first, RawRow)
    assert isinstance(third, RawRow)
    assert not isinstance(second, RawRow)
    assert (second.row_number, second.reason) == (2, Reason.NOT_UTF8)


def test_a_compressed_file_is_read_like_a_plain_one(tmp_path: Path) -> None:
    plain = _write(tmp_path / "a.parquet", {"prompt": ["p"]})
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(parquet_rows(packed, ["prompt"])) == list(parquet_rows(plain, ["prompt"]))


@pytest.mark.parametrize("keep", [0, 3, 40, -20])
def test_a_cut_file_is_a_broken_container(tmp_path: Path, keep: int) -> None:
    path = _write(tmp_path / "a.parquet", {"prompt": ["p" * 50]})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BrokenContainer, match="not a whole Parquet file"):
        list(parquet_rows(path, ["prompt"]))
