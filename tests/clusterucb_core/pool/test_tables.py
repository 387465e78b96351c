from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.errors import InvalidPool, MissingArtifact
from clusterucb_core.pool.conversations import messages_json
from clusterucb_core.pool.tables import (
    SAMPLES_FILE,
    SAMPLES_SCHEMA,
    read_sample_ids,
    read_samples,
    table_writer,
)
from clusterucb_core.records import ArtifactRef, Message, Sample

SAMPLES = [
    Sample(f"{n:032x}", "toy", (Message("user", f"Q{n} é\u2028"), Message("assistant", "A")))
    for n in range(5000, 0, -1)
]


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> ArtifactRef:
    root = tmp_path_factory.mktemp("pool")
    with (
        new_artifact(root, "ingest", "f", {}) as folder,
        table_writer(folder / SAMPLES_FILE, SAMPLES_SCHEMA) as table,
    ):
        for number, sample in enumerate(SAMPLES, start=1):
            table.add(sample.sample_id, "toy", messages_json(sample.messages), 5, "toy.jsonl", number)
    return ArtifactRef(stage="ingest", fingerprint="f", path=str(root / "ingest" / "f"))


def test_samples_come_back_as_written_and_in_order(ref: ArtifactRef) -> None:
    assert list(read_samples(ref)) == SAMPLES
    assert read_sample_ids(ref) == [sample.sample_id for sample in SAMPLES]


def test_a_part_of_the_samples_comes_in_the_order_of_the_table(ref: ArtifactRef) -> None:
    part = SAMPLES[3::700]
    assert list(read_samples(ref, [sample.sample_id for sample in reversed(part)])) == part
    assert list(read_samples(ref, [])) == []


def test_ids_that_the_pool_does_not_hold_are_an_error(ref: ArtifactRef) -> None:
    with pytest.raises(InvalidPool, match="1 of 2 sample ids"):
        list(read_samples(ref, {SAMPLES[0].sample_id, "0" * 32}))


def test_a_deleted_table_is_a_missing_artifact(tmp_path: Path) -> None:
    gone = ArtifactRef(stage="ingest", fingerprint="f", path=str(tmp_path))
    with pytest.raises(MissingArtifact, match="run the pipeline again"):
        list(read_samples(gone))


def test_only_columns_that_repeat_themselves_have_a_dictionary(ref: ArtifactRef) -> None:
    group = pq.ParquetFile(Path(ref.path) / SAMPLES_FILE).metadata.row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    found = {column.path_in_schema for column in columns if "RLE_DICTIONARY" in column.encodings}
    assert found == {"source", "path"}


def test_rows_are_written_in_groups_before_they_grow_large(ref: ArtifactRef, tmp_path: Path) -> None:
    assert pq.ParquetFile(Path(ref.path) / SAMPLES_FILE).metadata.num_row_groups == 2
    with table_writer(tmp_path / "big.parquet", SAMPLES_SCHEMA) as table:
        for number in range(5):
            table.add("id", "toy", "x" * 3_000_000, 3_000_000, "toy.jsonl", number)
    assert pq.ParquetFile(tmp_path / "big.parquet").metadata.num_row_groups == 2


def test_a_table_without_rows_is_a_table(tmp_path: Path) -> None:
    with table_writer(tmp_path / "empty.parquet", SAMPLES_SCHEMA):
        pass
    assert pq.read_table(tmp_path / "empty.parquet").schema == SAMPLES_SCHEMA
