import gzip
from pathlib import Path

import pytest
import zstandard

from clusterucb_core.containers import inner_suffix, open_bytes

TEXT = b"one\ntwo\nthree\n" * 1000


def _read(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    with open_bytes(path) as stream:
        return stream.read()


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.jsonl", ".jsonl"), ("a.JSONL.GZ", ".jsonl"), ("a.b.tsv.zst", ".tsv"), ("a.gz", ""), ("a", "")],
)
def test_the_inner_suffix_is_the_one_below_the_compression(name: str, suffix: str) -> None:
    assert inner_suffix(Path(name)) == suffix


def test_plain_gzip_and_zstandard_files_give_the_same_bytes(tmp_path: Path) -> None:
    assert _read(tmp_path / "a.tsv", TEXT) == TEXT
    assert _read(tmp_path / "a.tsv.gz", gzip.compress(TEXT)) == TEXT
    assert _read(tmp_path / "a.tsv.zst", zstandard.compress(TEXT)) == TEXT


def test_several_frames_in_a_row_are_all_read(tmp_path: Path) -> None:
    assert _read(tmp_path / "a.gz", gzip.compress(TEXT) + gzip.compress(b"end")) == TEXT + b"end"
    assert _read(tmp_path / "a.zst", zstandard.compress(TEXT) + zstandard.compress(b"end")) == TEXT + b"end"


def test_a_frame_that_unfolds_far_beyond_one_read_is_whole(tmp_path: Path) -> None:
    zeros = b"0" * 5_000_000
    assert _read(tmp_path / "a.zst", zstandard.compress(zeros)) == zeros


def test_a_cut_zstandard_file_is_an_error_and_not_an_end(tmp_path: Path) -> None:
    with pytest.raises(EOFError, match="inside a frame"):
        _read(tmp_path / "a.zst", zstandard.compress(TEXT)[:-3])


def test_a_cut_gzip_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EOFError):
        _read(tmp_path / "a.gz", gzip.compress(TEXT)[:-9])


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_an_empty_file_holds_no_bytes(tmp_path: Path, name: str) -> None:
    assert _read(tmp_path / name, b"") == b""


def test_another_kind_of_file_under_the_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(zstandard.ZstdError):
        _read(tmp_path / "a.zst", b"plain text, really")
    with pytest.raises(gzip.BadGzipFile):
        _read(tmp_path / "a.gz", b"plain text, really")
