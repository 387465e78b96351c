import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clusterucb_core.pool.formats import read_file
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


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("ms"), 2**62),
        (pa.timestamp("s", tz="Mars/Olympus"), 1),
        (pa.date32(), 2**30),
        (pa.timestamp("ns"), -(2**62) + 1),
    ],
)
def test_a_value_that_python_has_no_place_for_costs_only_its_row(
    tmp_path: Path, kind: pa.DataType, value: int
) -> None:
    path = _write(tmp_path / "a.parquet", {"prompt": pa.array([value, None], kind), "completion": ["a", "b"]})
    _, second = parquet_rows(path, ["prompt", "completion"])
    assert isinstance(second, RawRow)
    assert second.value == {"prompt": None, "completion": "b"}
    first, _ = read_file(path, source="s")
    assert [bad.reason for bad in first.bad] == [Reason.WRONG_TYPE]


def test_a_dictionary_that_unfolds_to_gigabytes_is_refused(tmp_path: Path) -> None:
    text = pa.array(["x" * (9 * 2**20)]).dictionary_encode().take(pa.array([0] * 2000))
    path = _write(tmp_path / "a.parquet", {"prompt": text}, compression="zstd")
    assert path.stat().st_size < 10_000
    with pytest.raises(BrokenContainer, match="prompt begins with a page that unfolds to 943718"):
        list(parquet_rows(path, ["prompt"]))
    assert len(list(parquet_rows(path, ["other"]))) == 2000


def test_a_row_of_a_hundred_thousand_turns_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"messages": [["x"] * 100_001]})
    with pytest.raises(BrokenContainer, match="messages has 100001 values in 1 rows"):
        list(parquet_rows(path, ["messages"]))


def test_a_row_beyond_the_limit_is_named_and_its_neighbours_stay(tmp_path: Path) -> None:
    texts = ["a", "x" * 18 * 2**20, "b"]
    first, second, third = parquet_rows(
        _write(tmp_path / "a.parquet", {"prompt": texts}, use_dictionary=False), ["prompt"]
    )
    assert (first.value, second.reason, third.value) == (
        {"prompt": "a"},
        Reason.ROW_TOO_LONG,
        {"prompt": "b"},
    )  # type: ignore[union-attr]


def test_a_package_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(bytes(200 * 2**20), 1))
    with pytest.raises(BrokenContainer, match="100 times its size"):
        list(parquet_rows(path, ["prompt"]))


def test_a_footer_that_ends_the_process_when_pyarrow_reads_it_is_broken(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"messages": [[{"role": "user", "content": "Q"}]]})
    path.write_bytes(path.read_bytes()[:-60] + b"\xff" * 40 + path.read_bytes()[-20:])
    with pytest.raises(BrokenContainer):
        list(parquet_rows(path, ["messages"]))
