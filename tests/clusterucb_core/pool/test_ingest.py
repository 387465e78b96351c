import gzip
import hashlib
import json
import logging
import tracemalloc
from collections.abc import Collection
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb_core.errors import InvalidPool
from clusterucb_core.pool.ingest import (
    IngestCounts,
    PoolSettings,
    ingest,
    ingest_counts,
    limit_samples,
    read_sample_ids,
    read_samples,
)
from clusterucb_core.records import ArtifactRef

Rows = list[tuple[str, str]]


def _write(folder: Path, **files: Rows) -> None:
    for name, rows in files.items():
        lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _ingest(
    folder: Path, *paths: str, withdrawn: Collection[str] = frozenset(), **more: object
) -> ArtifactRef:
    settings = PoolSettings.model_validate({"sources": [{"path": path} for path in paths or ("*",)], **more})
    root = folder.parent / "artifacts"
    return ingest(settings, base_folder=folder, artifact_root=root, withdrawn=withdrawn)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pool = tmp_path / "pool"
    pool.mkdir()
    return pool


def _texts(ref: ArtifactRef) -> list[str]:
    return [
        f"{sample.source}: {' '.join(m.content for m in sample.messages)}" for sample in read_samples(ref)
    ]


REPEATS: dict[str, Rows] = {
    "a": [("One?", "1"), ("two?", "2"), ("ONE? ", "one"), ("One?", "1")],
    "b": [("one?", "uno"), ("Two?", "2"), ("two?", "2"), ("three?", "3")],
}


B_TEXTS = ["b: one? uno", "b: Two? 2", "b: two? 2", "b: three? 3"]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("prompt", ["a: One? 1", "a: two? 2", "b: three? 3"]),
        ("content", ["a: One? 1", "a: two? 2", "a: ONE? one", "b: one? uno", "b: Two? 2", "b: three? 3"]),
        (
            "none",
            ["a: One? 1", "a: two? 2", "a: ONE? one", "a: One? 1", *B_TEXTS],
        ),
    ],
)
def test_repeats_give_way_to_what_came_first(folder: Path, rule: str, kept: list[str]) -> None:
    _write(folder, **REPEATS)
    ref = _ingest(folder, dedupe=rule)
    counts = ingest_counts(ref)
    assert _texts(ref) == kept
    assert (counts.samples_read, counts.n_samples, counts.duplicates) == (8, len(kept), 8 - len(kept))
    assert len(set(read_sample_ids(ref))) == len(kept)


def test_a_later_row_of_the_same_prompt_takes_the_place_of_a_withdrawn_one(folder: Path) -> None:
    _write(folder, **REPEATS)
    first = next(read_samples(_ingest(folder)))
    ref = _ingest(folder, withdrawn={first.sample_id})
    assert _texts(ref) == ["a: two? 2", "a: ONE? one", "b: three? 3"]
    counts = ingest_counts(ref)
    assert [(source.kept, source.duplicates, source.withdrawn) for source in counts.sources] == [
        (2, 0, 2),
        (1, 3, 0),
    ]
    assert (counts.samples_read, counts.n_samples, counts.duplicates, counts.withdrawn) == (8, 3, 3, 2)


def test_every_copy_of_a_withdrawn_sample_is_left_out_where_repeats_are_kept(folder: Path) -> None:
    _write(folder, **REPEATS)
    first = next(read_samples(_ingest(folder, dedupe="none")))
    ref = _ingest(folder, withdrawn={first.sample_id}, dedupe="none")
    assert _texts(ref) == ["a: two? 2", "a: ONE? one", *B_TEXTS]
    assert ingest_counts(ref).withdrawn == 2


def test_withdrawn_samples_make_another_pool_and_none_the_same(folder: Path) -> None:
    _write(folder, **REPEATS)
    plain = _ingest(folder)
    left = [_ingest(folder, withdrawn=ids) for ids in (["0" * 32, "1" * 32], {"1" * 32, "0" * 32}, [])]
    assert left[0].fingerprint == left[1].fingerprint != plain.fingerprint
    assert left[2] == plain


def test_a_pool_of_withdrawn_samples_only_is_refused(folder: Path) -> None:
    _write(folder, a=[("Q", "A")])
    ids = set(read_sample_ids(_ingest(folder)))
    with pytest.raises(InvalidPool, match="withdrawn 1"):
        _ingest(folder, withdrawn=ids)


def test_the_order_of_sources_decides_which_repeat_stays(folder: Path) -> None:
    _write(folder, **REPEATS)
    assert _texts(_ingest(folder, "b.jsonl", "a.jsonl")) == ["b: one? uno", "b: Two? 2", "b: three? 3"]


def test_ids_name_the_content_and_not_its_place(folder: Path) -> None:
    _write(folder, a=[("Q", "A"), ("R", "B")])
    (folder / "b.json").write_text(
        '[{"completion": "B", "id": 9, "prompt": " R\\n"}, {"completion": "A", "prompt": "Q"}]'
    )
    first, second = _ingest(folder, "a.jsonl"), _ingest(folder, "b.json")
    assert read_sample_ids(first) == read_sample_ids(second)[::-1]
    assert ingest_counts(first).digest == ingest_counts(second).digest
    assert first.fingerprint != second.fingerprint


def test_the_digest_is_the_hash_of_the_sorted_ids(folder: Path) -> None:
    _write(folder, a=[("Q", "A"), ("R", "B"), ("S", "C")])
    ref = _ingest(folder)
    text = "\n".join(sorted(read_sample_ids(ref)))
    assert ingest_counts(ref).digest == hashlib.sha256(text.encode()).hexdigest()


def test_a_repeat_that_is_kept_has_the_same_id_wherever_it_stands(folder: Path) -> None:
    _write(folder, a=[("Q", "A"), ("Q", "A"), ("R", "B")])
    first = read_sample_ids(_ingest(folder, dedupe="none"))
    _write(folder, a=[("R", "B"), ("Q", "A"), ("Q", "A")])
    assert sorted(read_sample_ids(_ingest(folder, dedupe="none"))) == sorted(first)


def test_counts_add_up_by_source_and_in_total(folder: Path) -> None:
    _write(folder, a=[("Q", "A"), ("q", "B"), ("", "C"), ("D", ""), ("E", " ")], b=[("Q", "A")])
    (folder / "c.jsonl").write_bytes(b"")
    counts = ingest_counts(_ingest(folder))
    by_source = {source.source: source for source in counts.sources}
    assert list(by_source) == ["a", "b", "c"]
    assert by_source["a"].model_dump() == {
        "source": "a", "rows_read": 5, "samples_read": 2, "kept": 1, "duplicates": 1, "withdrawn": 0,
        "quarantined": {"no_prompt": 1, "no_answer": 2},
    }  # fmt: skip
    assert (by_source["b"].duplicates, by_source["c"].rows_read) == (1, 0)
    assert (counts.rows_read, counts.n_samples, counts.duplicates) == (6, 1, 2)
    assert counts.quarantined == {"no_prompt": 1, "no_answer": 2}


def test_the_tables_hold_where_each_row_came_from(folder: Path) -> None:
    _write(folder, a=[("Q", "Aé"), ("R", "")])
    ref = _ingest(folder)
    samples = pl.read_parquet(Path(ref.path) / "samples.parquet").to_dicts()
    assert samples == [
        {
            "sample_id": read_sample_ids(ref)[0],
            "source": "a",
            "messages": '[{"role":"user","content":"Q"},{"role":"assistant","content":"Aé"}]',
            "n_chars": 3,
            "path": "a.jsonl",
            "row_number": 1,
        }
    ]
    (bad,) = pl.read_parquet(Path(ref.path) / "quarantine.parquet").to_dicts()
    assert list(bad) == ["source", "row_number", "reason", "detail", "raw"]
    assert (bad["source"], bad["row_number"], bad["reason"]) == ("a", 2, "no_answer")
    assert bad["detail"] == "a.jsonl: the assistant turn 2 of 2 is empty"
    assert json.loads(bad["raw"]) == {"prompt": "R", "completion": ""}


def test_a_second_ingest_of_the_same_files_reads_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(folder, a=[("Q", "A")])
    first = _ingest(folder)
    written = (Path(first.path) / "samples.parquet").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert _ingest(folder, max_samples=1) == first
    assert "ingested before" in caplog.text
    assert (Path(first.path) / "samples.parquet").stat().st_mtime_ns == written


def test_two_ingests_of_the_same_files_write_the_same_tables(folder: Path) -> None:
    _write(folder, **REPEATS)
    settings = PoolSettings.model_validate({"sources": [{"path": "*"}]})
    refs = [ingest(settings, base_folder=folder, artifact_root=folder.parent / name) for name in "xy"]
    tables = [[file.read_bytes() for file in sorted(Path(ref.path).iterdir())] for ref in refs]
    assert tables[0] == tables[1]


def test_a_broken_container_is_a_record_and_no_row(folder: Path) -> None:
    _write(folder, a=[(f"Q{n}", f"{3**n}") for n in range(500)])
    packed = gzip.compress((folder / "a.jsonl").read_bytes())
    (folder / "a.jsonl").unlink()
    (folder / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    counts = ingest_counts(_ingest(folder))
    assert counts.quarantined == {"broken_container": 1}
    assert 0 < counts.rows_read == counts.n_samples < 500


def test_a_pool_without_a_sample_is_an_error_that_says_what_became_of_the_rows(folder: Path) -> None:
    _write(folder, a=[("Q", ""), ("R", "")])
    with pytest.raises(
        InvalidPool, match=r"2 rows read from a; quarantined \{'no_answer': 2\}, first a\.jsonl, row 1"
    ):
        _ingest(folder)
    (folder / "a.jsonl").write_bytes(b"")
    with pytest.raises(InvalidPool, match="0 rows read from a"):
        _ingest(folder)
    assert list((folder.parent / "artifacts" / "ingest").iterdir()) == []


def test_files_of_one_name_are_counted_together(folder: Path) -> None:
    _write(folder, a=[("Q", "A")], b=[("R", "B")])
    settings = PoolSettings.model_validate({"sources": [{"path": "*", "name": "both"}]})
    ref = ingest(settings, base_folder=folder, artifact_root=folder.parent / "artifacts")
    (source,) = ingest_counts(ref).sources
    assert (source.source, source.rows_read, source.kept) == ("both", 2, 2)


def test_counts_survive_the_manifest(folder: Path) -> None:
    _write(folder, **REPEATS)
    counts = ingest_counts(_ingest(folder))
    assert IngestCounts.model_validate_json(counts.model_dump_json()) == counts


IDS = [hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in range(40)]


@given(order=st.permutations(IDS), seed=st.integers(0, 3), most=st.integers(1, 45))
def test_the_limited_pool_depends_on_seed_and_ids_only(order: list[str], seed: int, most: int) -> None:
    part = limit_samples(order, max_samples=most, seed=seed)
    assert part == limit_samples(IDS, max_samples=most, seed=seed) == sorted(part)
    assert len(part) == min(most, len(IDS))
    assert set(part) <= set(limit_samples(IDS, max_samples=most + 1, seed=seed))


def test_no_limit_gives_all_ids_sorted_and_once() -> None:
    assert limit_samples([*IDS, *IDS], max_samples=None, seed=0) == sorted(IDS)


def test_another_seed_gives_another_part() -> None:
    assert limit_samples(IDS, max_samples=10, seed=0) != limit_samples(IDS, max_samples=10, seed=1)


def test_one_new_sample_moves_at_most_one_other_out() -> None:
    before = set(limit_samples(IDS, max_samples=10, seed=0))
    after = set(limit_samples([*IDS, "f" * 32], max_samples=10, seed=0))
    assert len(before - after) <= 1


def _peak_bytes(folder: Path, rows: int) -> int:
    """Return the most memory that an ingest of so many long rows held at once."""
    path = folder / f"{rows}.jsonl"
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"prompt": f"Q{number}", "completion": "x" * 1_000_000}) + "\n")
    tracemalloc.start()
    try:
        _ingest(folder, path.name)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(folder: Path) -> None:
    few, many = _peak_bytes(folder, 20), _peak_bytes(folder, 80)
    assert many < 1.2 * few, f"{few} bytes for 20 rows of a megabyte, {many} for 80: rows are being collected"
