"""Samples taken out of ingested pools: their rows, and the quarantined rows that show their text.

Reads and replaces `samples.parquet`, `quarantine.parquet` and the manifest of an artifact `ingest`.
"""

# PyArrow ships no types: what it returns is narrowed here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clusterucb_core.artifacts import MANIFEST
from clusterucb_core.erasure.folders import replace_file, write_manifest
from clusterucb_core.erasure.traces import Traces, shows_trace
from clusterucb_core.pool.tables import QUARANTINE_FILE, SAMPLES_FILE

_ROWS = 4096


def erase_from_pool(folder: Path, sample_ids: frozenset[str], traces: Traces) -> bool:
    """Take samples out of an ingested pool; return whether it held any of their text."""
    samples, quarantine = folder / SAMPLES_FILE, folder / QUARANTINE_FILE
    held = _held(samples, sample_ids)
    if held:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        write_manifest(folder, manifest | {"erased": sorted({*manifest.get("erased", []), *held})})
        _rewrite(samples, lambda batch: batch.filter(_others(batch, sample_ids)))
    shown = _shows(quarantine, traces)
    if shown:
        _rewrite(quarantine, lambda batch: _silenced(batch, traces))
    return bool(held) or shown


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


def _rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    def write(draft: Path) -> None:
        with (
            pq.ParquetFile(path) as file,
            pq.ParquetWriter(draft, file.schema_arrow, compression="zstd") as out,
        ):
            for batch in file.iter_batches(batch_size=_ROWS):
                out.write_batch(change(batch))

    replace_file(path, write)
