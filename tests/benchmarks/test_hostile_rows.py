"""The fuzzers' made files: repeatable, of every kind, and with the rows that they say they have."""

import csv
import gzip
import io

import pyarrow.parquet as pq
import zstandard
from hostile_rows import COMPRESSIONS, CONTAINERS, HostileFile, hostile_file

FILES = [hostile_file(f"test/{number}", 20) for number in range(300)]


def unpacked(made: HostileFile) -> bytes:
    if made.suffix.endswith(".gz"):
        return gzip.decompress(made.content)
    if made.suffix.endswith(".zst"):
        with zstandard.ZstdDecompressor().stream_reader(made.content, read_across_frames=True) as stream:
            return stream.read()
    return made.content


def test_the_same_seed_gives_the_same_file_and_another_one_another() -> None:
    assert hostile_file("a", 50) == hostile_file("a", 50)
    assert hostile_file("a", 50) != hostile_file("b", 50)


def test_every_container_package_and_kind_of_damage_is_made() -> None:
    assert {made.suffix for made in FILES} == {a + b for a in CONTAINERS for b in COMPRESSIONS}
    assert len({made.damage.split(",")[0] for made in FILES}) == 8
    assert sum(made.rows is not None for made in FILES) > len(FILES) / 3


def test_whole_files_hold_the_rows_that_they_say() -> None:
    """Counted by other parsers than the project's."""
    csv.field_size_limit(2**30)
    seen = set()
    for made in (made for made in FILES if made.damage == "none" and made.rows is not None):
        container, content = "." + made.suffix.split(".")[1], unpacked(made)
        match container:
            case ".parquet":
                found = pq.ParquetFile(io.BytesIO(content)).metadata.num_rows
            case ".csv":
                found = len(list(csv.reader(io.StringIO(content.decode(), newline="")))) - 1
            case ".jsonl":
                found = sum(bool(line.strip()) for line in content.split(b"\n"))
            case ".json" if not content.strip().startswith(b"["):
                found = sum(bool(line.strip()) for line in content.split(b"\n"))
            case _:
                continue
        assert found == made.rows, made.suffix
        seen.add(container)
    assert seen == {".parquet", ".csv", ".jsonl", ".json"}


def test_most_rows_are_good_ones():
    good = rows = 0
    for made in (made for made in FILES if made.suffix == ".jsonl" and made.damage == "none"):
        rows += made.rows
        good += sum(line.strip().endswith(b"}") for line in made.content.split(b"\n"))
    assert 0.8 * rows < good <= rows
