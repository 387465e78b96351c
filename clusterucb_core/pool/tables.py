"""The tables of an ingested pool, `samples.parquet` and `quarantine.parquet`: written and read in batches."""

# PyArrow ships no types: what it returns is narrowed here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clusterucb_core.artifacts import artifact_file
from clusterucb_core.errors import InvalidPool
from clusterucb_core.records import ArtifactRef, Message, Sample

SAMPLES_FILE = "samples.parquet"
QUARANTINE_FILE = "quarantine.parquet"
SAMPLES_SCHEMA: Any = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("messages", pa.string()),
        ("n_chars", pa.int64()),
        ("path", pa.string()),
        ("row_number", pa.int64()),
    ]
)
QUARANTINE_SCHEMA: Any = pa.schema(
    [
        ("source", pa.string()),
        ("row_number", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("raw", pa.string()),
    ]
)
_REPEATING: Any = ["source", "path", "reason"]  # PyArrow's types know a boolean only
_FLUSH_ROWS = 4096
_FLUSH_CHARS = 8 * 1024 * 1024
_READ_ROWS = 512


class TableWriter:
    """Collects rows and writes them to a Parquet file before they grow past a few megabytes."""

    def __init__(self, writer: Any, schema: Any) -> None:
        self._writer = writer
        self._schema = schema
        self._rows: list[Sequence[str | int]] = []
        self._chars = 0

    def add(self, *row: str | int) -> None:
        """Add one row, its values in the order of the schema."""
        self._rows.append(row)
        for value in row:
            if isinstance(value, str):
                self._chars += len(value)
        if len(self._rows) >= _FLUSH_ROWS or self._chars >= _FLUSH_CHARS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are waiting."""
        if self._rows:
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._rows.clear()
        self._chars = 0


@contextmanager
def table_writer(path: Path, schema: Any) -> Generator[TableWriter]:
    """Give a writer of a new Parquet file, which is complete when the block ends without an error."""
    # a dictionary of texts that are all different is built for nothing
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=_REPEATING) as file:
        writer = TableWriter(file, schema)
        yield writer
        writer.flush()


def read_samples(ref: ArtifactRef, sample_ids: Collection[str] | None = None) -> Iterator[Sample]:
    """Give the samples of an ingested pool in its order, in bounded memory.

    Args:
        ref: the artifact that `ingest` returned.
        sample_ids: the samples to give; None: all.

    Raises:
        MissingArtifact: the table is gone.
        StaleArtifact: it is not what was written.
        InvalidPool: the pool does not hold some of `sample_ids`; raised when the others have been given.
    """
    wanted = None if sample_ids is None else set(sample_ids)
    given = 0
    for batch in _batches(ref, ["sample_id", "source", "messages"]):
        if wanted is not None:
            batch = batch.filter(pa.array([key in wanted for key in batch.column(0).to_pylist()], pa.bool_()))
        given += batch.num_rows
        for sample_id, source, messages in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            yield Sample(sample_id, source, tuple(Message(**turn) for turn in json.loads(messages)))
    if wanted is not None and given < len(wanted):
        raise InvalidPool(
            f"{len(wanted) - given} of {len(wanted)} sample ids are not in the pool {ref.path}; "
            "take the ids from the same pool version"
        )


def read_sample_ids(ref: ArtifactRef) -> list[str]:
    """Return the ids of all samples of an ingested pool, in its order.

    Raises:
        MissingArtifact: the table is gone.
        StaleArtifact: it is not what was written.
    """
    return [sample_id for batch in _batches(ref, ["sample_id"]) for sample_id in batch.column(0).to_pylist()]


def _batches(ref: ArtifactRef, columns: list[str]) -> Iterator[Any]:
    path = artifact_file(ref, SAMPLES_FILE)
    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=_READ_ROWS, columns=columns)
