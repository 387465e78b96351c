"""Samples taken out of ingested pools: their rows, and the quarantined rows that show their text.

Reads and replaces artifacts `ingest`, whole: the manifest holds the digests of both tables.
"""

# PyArrow ships no types: what it returns is narrowed here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clusterucb_core.erasure.folders import manifest_of, replace_folder, seal_draft
from clusterucb_core.erasure.traces import Traces, shows_trace
from clusterucb_core.pool.tables import QUARANTINE_FILE, SAMPLES_FILE
from clusterucb_core.seals import check_files

_ROWS = 4096


def erase_from_pool(folder: Path, sample_ids: frozenset[str], traces: Traces) -> bool:
    """Take samples out of an ingested pool; return whether it held any of their text.

    Raises:
        StaleArtifact: it is damaged.
    """
    content, seal = manifest_of(folder)
    check_files(folder, seal)
    held = _held(folder / SAMPLES_FILE, sample_ids)
    if not held and not _shows(folder / QUARANTINE_FILE, traces):
        return False
    changes: dict[str, Callable[[Any], Any]] = {
        SAMPLES_FILE: lambda batch: batch.filter(_others(batch, sample_ids)),
        QUARANTINE_FILE: lambda batch: _silenced(batch, traces),
    }

    def fill(draft: Path) -> None:
        for name in seal.files:
            if name in changes:
                _rewrite(folder / name, draft / name, changes[name])
            else:
                shutil.copyfile(folder / name, draft / name)
        seal_draft(draft, content | {"erased": sorted({*content.get("erased", []), *held})}, seal)

    replace_folder(folder, fill)
    return True


def _held(path: Path, sample_ids: frozenset[str]) -> set[str]:
    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(batch_size=_ROWS, columns=["sample_id"])
        return {found for batch in batches for found in batch.column(0).to_pylist() if found in sample_ids}


def _others(batch: Any, sample_ids: frozenset[str]) -> Any:
    return pa.array([found not in sample_ids for found in batch.column("sample_id").to_pylist()], pa.bool_())


def _shows(path: Path, traces: Traces) -> bool:
    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(batch_size=_ROWS, columns=["detail", "raw"])
        return any(any(_traced(batch, traces)) for batch in batches)


def _traced(batch: Any, traces: Traces) -> list[bool]:
    rows = zip(batch.column("detail").to_pylist(), batch.column("raw").to_pylist(), strict=True)
    return [shows_trace(traces, f"{detail or ''} {raw or ''}") for detail, raw in rows]


def _silenced(batch: Any, traces: Traces) -> Any:
    traced = _traced(batch, traces)
    columns = [
        _without(column, traced) if name in ("detail", "raw") else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _without(column: Any, traced: list[bool]) -> Any:
    texts = zip(column.to_pylist(), traced, strict=True)
    return pa.array([None if out else text for text, out in texts], pa.string())


def _rewrite(path: Path, draft: Path, change: Callable[[Any], Any]) -> None:
    with (
        pq.ParquetFile(path) as file,
        pq.ParquetWriter(draft, file.schema_arrow, compression="zstd") as out,
    ):
        for batch in file.iter_batches(batch_size=_ROWS):
            out.write_batch(change(batch))
