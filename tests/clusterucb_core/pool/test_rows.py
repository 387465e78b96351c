import gzip
import json
from pathlib import Path

import pytest
import zstandard

from clusterucb_core.errors import InvalidPool
from clusterucb_core.pool.quarantine import BadRow, RawRow, Reason
from clusterucb_core.pool.rows import read_rows

ROWS = [{"prompt": f"p{n}", "completion": "c" * 20} for n in range(2000)]
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()


def _read(path: Path, content: bytes) -> list[RawRow | BadRow]:
    path.write_bytes(content)
    return list(read_rows(path, columns=["prompt"], is_header=lambda names: "prompt" in names))


def _values(rows: list[RawRow | BadRow]) -> list[object]:
    return [row.value for row in rows if isinstance(row, RawRow)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        ("a.JSONL.gz", gzip.compress(LINES)),
        ("a.json.zst", zstandard.compress(json.dumps(ROWS).encode())),
        (
            "a.csv",
            b"prompt,completion\r\n"
            + b"".join(f"{r['prompt']},{r['completion']}\r\n".encode() for r in ROWS),
        ),
        (
            "a.tsv",
            b"prompt\tcompletion\n" + b"".join(f"{r['prompt']}\t{r['completion']}\n".encode() for r in ROWS),
        ),
    ],
)
def test_every_container_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    assert _values(_read(tmp_path / name, content)) == ROWS


@pytest.mark.parametrize(
    ("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)]
)
def test_a_cut_container_keeps_its_rows_and_says_what_is_wrong(
    tmp_path: Path, name: str, pack: object
) -> None:
    packed = pack(LINES)  # type: ignore[operator]
    *rows, last = _read(tmp_path / name, packed[:-20])
    assert isinstance(last, BadRow)
    assert (last.reason, last.row_number) == (Reason.BROKEN_CONTAINER, len(rows) + 1)
    assert f"after row {len(rows)}" in last.detail
    assert _values(rows) == ROWS[: len(rows)]


def test_a_cut_gzip_file_of_lines_that_do_not_compress_keeps_those_before_the_cut(tmp_path: Path) -> None:
    lines = b"".join(b'{"n": "%x"}\n' % (3**n % 2**4000) for n in range(500))
    *rows, last = _read(tmp_path / "a.jsonl.gz", gzip.compress(lines)[:-20])
    assert 480 <= len(rows) < 500
    assert isinstance(last, BadRow)


@pytest.mark.parametrize(("name", "pack"), [("a.json.gz", gzip.compress), ("a.json.zst", zstandard.compress)])
def test_a_cut_container_of_one_short_line_keeps_the_rows_before_the_cut(
    tmp_path: Path, name: str, pack: object
) -> None:
    array = b"[" + b",".join(b'{"n": "%x"}' % (3**n % 2**4000) for n in range(1, 200)) + b"]"
    *rows, last = _read(tmp_path / name, pack(array)[:-200])  # type: ignore[operator]
    assert isinstance(last, BadRow)
    assert last.reason is Reason.BROKEN_CONTAINER
    assert len(rows) > 100 or name.endswith(".zst")  # one zstandard block comes whole or not at all


def test_an_array_that_breaks_off_keeps_its_rows(tmp_path: Path) -> None:
    *rows, last = _read(tmp_path / "a.json", b'[{"n": 1}, {"n": 2}, {"n":')
    assert _values(rows) == [{"n": 1}, {"n": 2}]
    assert isinstance(last, BadRow)
    assert (last.reason, last.raw.strip()) == (Reason.BROKEN_CONTAINER, '{"n":')


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.json.zst"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    assert _read(tmp_path / name, b"") == []


def test_plain_text_under_a_gzip_name_is_a_broken_container(tmp_path: Path) -> None:
    (row,) = _read(tmp_path / "a.jsonl.gz", LINES)
    assert isinstance(row, BadRow)
    assert "Not a gzipped file" in row.detail


@pytest.mark.parametrize("name", ["a.txt", "a", "a.gz", "a.xlsx"])
def test_an_unknown_suffix_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidPool, match=r"\.jsonl, \.json, \.csv, \.tsv, \.parquet"):
        _read(tmp_path / name, b"x")


def test_a_file_that_cannot_be_opened_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidPool, match=r"gone\.jsonl cannot be read"):
        list(read_rows(tmp_path / "gone.jsonl", columns=[], is_header=lambda _: False))
