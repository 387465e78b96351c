"""Export a selection version to a file that trainers read; writes that one file and a row of the catalog.

What is written where is recorded, so that an erasure finds the text again (`renew_export`).

`alpaca` and `sharegpt` are the shapes of the same name that LLaMA-Factory reads: strictly alternating turns
that begin with the user and end with the assistant. Conversations are brought into that form by `_Exchange`.
"""

import json
import logging
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never, cast, get_args

import polars as pl

from clusterucb_core.artifacts import file_digest
from clusterucb_core.errors import InvalidConfig
from clusterucb_core.frozen import Frozen
from clusterucb_core.near_names import did_you_mean
from clusterucb_core.store import (
    ExportRecord,
    open_catalog,
    record_export,
    selection_samples,
    selection_summary,
    withdrawn_in,
)

logger = logging.getLogger(__name__)

ExportFormat = Literal["jsonl", "parquet", "alpaca", "sharegpt"]
Turns = list[dict[str, str]]

_MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


class ExportResult(Frozen):
    """The file written, the number of samples in it, and what they are."""

    path: str
    n: int
    format: ExportFormat
    version: int


def export_selection(
    catalog: Path,
    version: int | None,
    out: Path,
    *,
    format: ExportFormat = "jsonl",  # noqa: A002 - the name in the contract
) -> ExportResult:
    """Write the samples of a selection version to a file, in rank order.

    Args:
        catalog: the DuckDB file.
        version: a selection version; None means the last period of the newest complete run.
        out: the file to write; an old one is replaced once the new one is complete.
        format: `jsonl` has `{"messages": [...]}` in each line; `parquet` rank, sample_id, influence, cluster,
            source and messages; `alpaca` a JSON array of instruction, input, output, and system and history
            where there are any; `sharegpt` a JSON array of conversations, and system where there is one.

    Returns:
        What was written. Erased and withdrawn samples are left out.

    Raises:
        InvalidConfig: the format is unknown, or `out` is a folder.
        MissingArtifact: there is no catalog.
        UnknownVersion: the catalog holds no such version.
    """
    if format not in get_args(ExportFormat):
        known = get_args(ExportFormat)
        advice = " ".join(filter(None, [did_you_mean(format, known), f"known formats: {', '.join(known)}"]))
        raise InvalidConfig(f"export format {format!r} is unknown; {advice}")
    if out.is_dir():
        raise InvalidConfig(f"{out} is a folder; name the file to write")
    found = _exported(catalog, version)
    for count, what in ((found.erased, "erased"), (found.withdrawn, "withdrawn")):
        if count:
            logger.warning("%d %s samples of version %d are left out", count, what, found.version)
    with _replacement(out) as draft:
        _write(found.samples, draft, shape=format)
        # first the record, then the name: no text lies where nobody would look for it
        _record(catalog, out, draft, version=found.version, shape=format)
    return ExportResult(path=str(out), n=len(found.samples), format=format, version=found.version)


def renew_export(catalog: Path, record: ExportRecord) -> Literal["rewritten", "gone", "changed"]:
    """Write a recorded export again without the samples erased or withdrawn since; ranks stay.

    Args:
        catalog: the DuckDB file.
        record: what was written where.

    Returns:
        `gone` where the file is no more; `changed` where it holds something else than was written, which is
        then left as it is.
    """
    out = Path(record.path)
    if not out.is_file():
        return "gone"
    samples = _exported(catalog, record.selection_version).samples
    shape = cast("ExportFormat", record.format)
    draft = _draft_of(out)
    try:
        _write(samples, draft, shape=shape)
        # the second digest: an earlier attempt has renewed the file
        if file_digest(out) not in (record.digest, file_digest(draft)):
            return "changed"
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    _record(catalog, out, out, version=record.selection_version, shape=shape)
    return "rewritten"


@dataclass(frozen=True)
class _Exported:
    """A version's samples that may be exported, and how many of it may not."""

    version: int
    samples: pl.DataFrame
    erased: int
    withdrawn: int


def _exported(catalog: Path, version: int | None) -> _Exported:
    with open_catalog(catalog, read_only=True) as con:
        found = selection_summary(con, version).selection_version
        samples, withdrawn = selection_samples(con, found), withdrawn_in(con)
    kept = samples.filter(pl.col("messages").is_not_null())
    allowed = kept.filter(~pl.col("sample_id").is_in(list(withdrawn)))
    return _Exported(found, allowed, erased=len(samples) - len(kept), withdrawn=len(kept) - len(allowed))


def _record(catalog: Path, out: Path, written: Path, *, version: int, shape: ExportFormat) -> None:
    record = ExportRecord(
        path=str(out.absolute()), selection_version=version, format=shape, digest=file_digest(written)
    )
    with open_catalog(catalog) as con:
        record_export(con, record)


def _write(samples: pl.DataFrame, path: Path, *, shape: ExportFormat) -> None:
    conversations: Iterator[Turns] = (json.loads(text) for text in samples["messages"])
    match shape:
        case "jsonl":
            _write_lines(({"messages": turns} for turns in conversations), path)
        case "parquet":
            column = pl.Series("messages", list(conversations), dtype=_MESSAGES)
            samples.with_columns(column).write_parquet(path)
        case "alpaca":
            _write_array((_alpaca_row(_exchange(turns)) for turns in conversations), path)
        case "sharegpt":
            _write_array((_sharegpt_row(_exchange(turns)) for turns in conversations), path)
        case _:
            assert_never(shape)


@dataclass(frozen=True)
class _Exchange:
    """A conversation as pairs of what the user said and what the assistant answered.

    System messages are joined, turns of one speaker in a row too; a conversation that the assistant opens has
    an empty first user turn, and a last user turn without an answer is dropped: nothing is learned from it.
    """

    system: str
    pairs: list[tuple[str, str]]


def _exchange(turns: Turns) -> _Exchange:
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    spoken: list[tuple[str, str]] = []
    for turn in turns:
        if turn["role"] == "system":
            continue
        if spoken and spoken[-1][0] == turn["role"]:
            spoken[-1] = (turn["role"], f"{spoken[-1][1]}\n\n{turn['content']}")
        else:
            spoken.append((turn["role"], turn["content"]))
    if spoken and spoken[0][0] == "assistant":
        spoken.insert(0, ("user", ""))
    texts = [text for _, text in spoken]
    return _Exchange(system, list(zip(texts[0::2], texts[1::2], strict=False)))


def _alpaca_row(exchange: _Exchange) -> dict[str, Any]:
    *history, (instruction, output) = exchange.pairs
    row: dict[str, Any] = {"instruction": instruction, "input": "", "output": output}
    if exchange.system:
        row["system"] = exchange.system
    if history:
        row["history"] = [list(pair) for pair in history]
    return row


def _sharegpt_row(exchange: _Exchange) -> dict[str, Any]:
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


@contextmanager
def _replacement(out: Path) -> Generator[Path, None, None]:
    """Give a temporary sibling of `out` to write; without an error it takes the name at the end."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft_of(out)
    try:
        yield draft
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


def _draft_of(out: Path) -> Path:
    return out.with_name(f".{uuid.uuid4().hex}.tmp")
