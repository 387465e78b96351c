"""The file of an export that holds the samples, in each format; written through a draft beside it.

`alpaca` and `sharegpt` are the shapes of the same name that LLaMA-Factory reads: strictly alternating turns
that begin with the user and end with the assistant, with the system message in a key of its own.
"""

# PyArrow ships no types: what it returns is narrowed here.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, assert_never

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from clusterucb_core.export.exchanges import Exchange, exchange_of
from clusterucb_core.export.options import ExportFormat
from clusterucb_core.storage_faults import writing_to

# Where the hub, and `datasets` in a folder, look for the rows of one split.
DATASETS_FILE = "data/train-00000-of-00001.parquet"
_ROWS_OF_A_GROUP = 10_000
_COLUMNS = ("rank", "sample_id", "influence", "cluster", "source", "messages")
# Plain types: large strings and large lists, which polars writes, are features of their own to `datasets`.
_TYPES = {
    "rank": pa.int32(),
    "sample_id": pa.string(),
    "influence": pa.float64(),
    "cluster": pa.int32(),
    "source": pa.string(),
    "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    "selection_version": pa.int32(),
    "pool_version": pa.int32(),
    "weight": pa.float64(),
}


def sample_file(out: Path, shape: ExportFormat) -> Path:
    """Return the file that holds the samples of an export to `out`."""
    return out / DATASETS_FILE if shape == "datasets" else out


def write_samples(samples: pl.DataFrame, path: Path, *, shape: ExportFormat, added: Sequence[str]) -> None:
    """Write samples to a file, row by row in their order.

    Args:
        samples: from `chosen_samples`.
        path: the file to write.
        shape: the format.
        added: columns that every row has beside the conversation; a Parquet file has most of them anyway.
    """
    match shape:
        case "jsonl":
            _write_lines(
                ({"messages": json.loads(row["messages"])} | _picked(row, added) for row in _rows(samples)),
                path,
            )
        case "parquet":
            _write_parquet(samples, path, [*_COLUMNS, *(name for name in added if name not in _COLUMNS)])
        case "datasets":
            _write_parquet(samples, path, ["messages", *added])
        case "alpaca":
            _write_array((_alpaca_row(_pairs(row)) | _picked(row, added) for row in _rows(samples)), path)
        case "sharegpt":
            _write_array((_sharegpt_row(_pairs(row)) | _picked(row, added) for row in _rows(samples)), path)
        case _:
            assert_never(shape)


@contextmanager
def replacement(out: Path) -> Generator[Path, None, None]:
    """Give a temporary sibling of `out` to write; without an error it takes the name at the end."""
    draft = draft_of(out)
    with writing_to(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)


def draft_of(out: Path) -> Path:
    """Return the name of a temporary sibling."""
    return out.with_name(f".{uuid.uuid4().hex}.tmp")


def _rows(samples: pl.DataFrame) -> Iterator[dict[str, Any]]:
    return samples.iter_rows(named=True)


def _picked(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in names}


def _pairs(row: dict[str, Any]) -> Exchange:
    return exchange_of(json.loads(row["messages"]))


def _alpaca_row(exchange: Exchange) -> dict[str, Any]:
    *history, (instruction, output) = exchange.pairs
    row: dict[str, Any] = {"instruction": instruction, "input": "", "output": output}
    if exchange.system:
        row["system"] = exchange.system
    if history:
        row["history"] = [list(pair) for pair in history]
    return row


def _sharegpt_row(exchange: Exchange) -> dict[str, Any]:
    conversations = [
        {"from": speaker, "value": text}
        for pair in exchange.pairs
        for speaker, text in zip(("human", "gpt"), pair, strict=True)
    ]
    row: dict[str, Any] = {"conversations": conversations}
    if exchange.system:
        row["system"] = exchange.system
    return row


def _write_lines(rows: Iterable[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_array(rows: Iterable[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        for number, row in enumerate(rows):
            file.write((",\n" if number else "\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def _write_parquet(samples: pl.DataFrame, path: Path, names: Sequence[str]) -> None:
    schema = pa.schema([(name, _TYPES[name]) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        for group in samples.iter_slices(_ROWS_OF_A_GROUP):
            columns = {
                name: [json.loads(text) for text in group[name]]
                if name == "messages"
                else group[name].to_list()
                for name in names
            }
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))
