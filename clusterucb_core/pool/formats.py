"""The row shapes that a pool file may have, and the reader that turns a file into samples.

To add a shape, edit this file only: a frozen variant in `Shape`, its name in `FormatName`, one `case` in
`_conversations`.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, assert_never, cast, get_args

from clusterucb_core.errors import InvalidPool
from clusterucb_core.pool.conversations import content_id, conversation, count_chars, type_name
from clusterucb_core.pool.message_trees import tree_paths
from clusterucb_core.pool.quarantine import MAX_ROW_BYTES, BadRow, RawRow, Reason, Unusable, bad_row
from clusterucb_core.pool.rows import read_rows
from clusterucb_core.pool.turns import (
    first_text,
    first_value,
    history_turns,
    instance_turns,
    outline,
    pair,
    system_turns,
    turns_of,
    with_input,
)
from clusterucb_core.records import Message, Sample

# So many rows of other keys may come before the first one of a known shape.
DETECTION_ROWS = 64
# ... and so many bytes: what cannot be placed yet is held.
DETECTION_BYTES = MAX_ROW_BYTES
_ROW_OVERHEAD_BYTES = 512
# Every sample of a row repeats its instruction or the turns before: a few megabytes could give terabytes.
MAX_ROW_CHARS = 4 * MAX_ROW_BYTES
# A tree of thousands of bad messages is named by its first ones and a count.
MAX_FINDINGS = 100

Keys = tuple[tuple[str, ...], ...]
FormatName = Literal[
    "auto",
    "messages",
    "sharegpt",
    "instances",
    "oasst",
    "alpaca",
    "flan_cot",
    "prompt_completion",
    "question_answer",
]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Messages:
    """OpenAI: a list of `{role, content}`; content is a text or a list of text parts."""

    name: ClassVar[str] = "messages"
    needs: ClassVar[Keys] = (("messages",),)
    reads: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class ShareGpt:
    """ShareGPT: a list of `{from, value}`, perhaps a system message beside it."""

    name: ClassVar[str] = "sharegpt"
    needs: ClassVar[Keys] = (("conversations",),)
    reads: ClassVar[tuple[str, ...]] = ("system",)


@dataclass(frozen=True, slots=True)
class Instances:
    """Self-Instruct: one instruction with several `{input, output}`; each of them is a sample."""

    name: ClassVar[str] = "instances"
    needs: ClassVar[Keys] = (("instruction",), ("instances",))
    reads: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class MessageTree:
    """Open Assistant: a tree of messages below `prompt`; each distinct path is a sample."""

    name: ClassVar[str] = "oasst"
    needs: ClassVar[Keys] = (("message_tree_id",), ("prompt",))
    reads: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class Alpaca:
    """Alpaca, GPTeacher, Dolly: an instruction, perhaps an input, the answer.

    As LLaMA-Factory has it also a system message, and earlier turns as pairs in `history`.
    """

    name: ClassVar[str] = "alpaca"
    needs: ClassVar[Keys] = (("instruction",), ("output", "response"))
    reads: ClassVar[tuple[str, ...]] = ("input", "context", "system", "history")


@dataclass(frozen=True, slots=True)
class FlanCot:
    r"""FLAN chain of thought: a line break is the two characters `\n`; the answer follows its rationale."""

    name: ClassVar[str] = "flan_cot"
    needs: ClassVar[Keys] = (("input",), ("answer",), ("rationale",))
    reads: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A prompt and its completion."""

    name: ClassVar[str] = "prompt_completion"
    needs: ClassVar[Keys] = (("prompt",), ("completion",))
    reads: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question and its answer."""

    name: ClassVar[str] = "question_answer"
    needs: ClassVar[Keys] = (("question",), ("answer",))
    reads: ClassVar[tuple[str, ...]] = ()


# The first one that fits a row wins.
Shape = Messages | ShareGpt | Instances | MessageTree | Alpaca | FlanCot | PromptCompletion | QuestionAnswer
SHAPES: tuple[Shape, ...] = tuple(variant() for variant in get_args(Shape))
# A TSV file without a header has the columns of this shape, in the order of `needs`.
HEADERLESS: Shape = FlanCot()
_COLUMNS = frozenset(key for shape in SHAPES for keys in (*shape.needs, shape.reads) for key in keys)


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What one row of a file gave: samples, quarantine records, or both."""

    row_number: int
    samples: tuple[Sample, ...]
    bad: tuple[BadRow, ...]


def read_file(
    path: Path, *, source: str, format_name: FormatName = "auto", min_chars: int = 1
) -> Iterator[ReadRow]:
    """Read a pool file row by row, in bounded memory; a bad row costs no other.

    With `auto` the shape is that of the first row that has a known one; rows that do not fit it are bad.

    Args:
        path: the file.
        source: name of the pool source, for the samples.
        format_name: name of the shape, or "auto".
        min_chars: the fewest characters of a sample, all turns together.

    Yields:
        One record a row, in file order; a damaged container ends with a record of its own.

    Raises:
        InvalidPool: the suffix is unknown, the file cannot be read, or its rows have no known shape.
    """
    shapes = _shapes(format_name)
    waiting: list[RawRow | BadRow] = []
    unknown = held_bytes = 0
    shape: Shape | None = None
    for row in _raw_rows(path, shapes):
        if isinstance(row, BadRow):
            if not waiting:
                yield ReadRow(row.row_number, (), (row,))
                continue
        else:
            unknown += 1
            shape = shape or _detected(row, shapes, path)
        waiting.append(row)
        held_bytes += len(row.raw) + _ROW_OVERHEAD_BYTES
        if shape is not None:
            yield from (_read_row(shape, known, source=source, min_chars=min_chars) for known in waiting)
            waiting.clear()
        elif unknown == DETECTION_ROWS or held_bytes > DETECTION_BYTES:
            break
    if waiting:
        first = next(row for row in waiting if isinstance(row, RawRow))
        raise InvalidPool(f"{path}: {_unknown_shape(first.value, shapes)}")


def file_shape(path: Path, format_name: FormatName = "auto") -> str | None:
    """Return the name of the shape that a file's rows are read as; None where it has no row that can be read.

    Only its first rows are read.

    Raises:
        InvalidPool: the suffix is unknown, the file cannot be read, or its rows have no known shape.
    """
    shapes = _shapes(format_name)
    first: RawRow | None = None
    unknown, held_bytes = 0, 0
    for row in _raw_rows(path, shapes):
        if isinstance(row, BadRow):
            continue
        shape = _fitting(row.value, shapes)
        if shape is not None:
            return shape.name
        first = first or row
        unknown += 1
        held_bytes += len(row.raw)
        if unknown == DETECTION_ROWS or held_bytes > DETECTION_BYTES:
            break
    if first:
        raise InvalidPool(f"{path}: {_unknown_shape(first.value, shapes)}")
    return None


def _shapes(format_name: FormatName) -> tuple[Shape, ...]:
    return tuple(shape for shape in SHAPES if format_name in ("auto", shape.name))


def _raw_rows(path: Path, shapes: Sequence[Shape]) -> Iterator[RawRow | BadRow]:
    return read_rows(
        path, columns=_COLUMNS, is_header=lambda names: _fitting(dict.fromkeys(names), shapes) is not None
    )


def _detected(row: RawRow, shapes: Sequence[Shape], path: Path) -> Shape | None:
    shape = _fitting(row.value, shapes)
    if shape is not None:
        _log.info("%s: the rows are read as %s", path.name, shape.name)
    return shape


def _fitting(value: object, shapes: Sequence[Shape]) -> Shape | None:
    if isinstance(value, tuple):
        columns = cast("tuple[str, ...]", value)
        return HEADERLESS if HEADERLESS in shapes and len(columns) == len(HEADERLESS.needs) else None
    if not isinstance(value, dict):
        return None
    row = cast("dict[str, object]", value)
    return next((shape for shape in shapes if _fits(shape, row)), None)


def _fits(shape: Shape, row: Mapping[str, object]) -> bool:
    return all(keys[0] in row or any(key in row for key in keys) for keys in shape.needs)


def _absent(shape: Shape, row: Mapping[str, object]) -> list[str]:
    return [" or ".join(keys) for keys in shape.needs if not any(key in row for key in keys)]


def _unknown_shape(value: object, shapes: Sequence[Shape]) -> str:
    known = "; ".join(f"{shape.name} ({_needs(shape)})" for shape in shapes)
    return (
        f"no reader knows the shape of its rows; the first one has {outline(value)}. Known shapes: {known}. "
        "Rename the keys or columns to those of a known shape, or take the file out of pool.sources"
    )


def _needs(shape: Shape) -> str:
    return ", ".join("|".join(keys) for keys in shape.needs)


def _read_row(shape: Shape, row: RawRow | BadRow, *, source: str, min_chars: int) -> ReadRow:
    if isinstance(row, BadRow):
        return ReadRow(row.row_number, (), (row,))
    samples: list[Sample] = []
    findings: list[Unusable] = []
    chars = 0
    try:
        for turns in _conversations(shape, _fields(shape, row.value)):
            if isinstance(turns, Unusable):
                findings.append(turns)
                continue
            chars += count_chars(turns)
            if chars > MAX_ROW_CHARS:
                detail = f"its samples have more than {MAX_ROW_CHARS} characters together; split the row"
                raise Unusable(Reason.ROW_TOO_LONG, detail)
            try:
                messages = conversation(turns, min_chars=min_chars)
                samples.append(Sample(content_id(messages), source, messages))
            except Unusable as finding:
                findings.append(finding)
    except Unusable as finding:
        findings.append(finding)
    return ReadRow(row.number, tuple(samples), _bad_rows(row, findings))


def _bad_rows(row: RawRow, findings: Sequence[Unusable]) -> tuple[BadRow, ...]:
    if not findings:
        return ()
    raw = row.raw or json.dumps(row.value, default=str, ensure_ascii=False).encode("utf-8", "replace")
    bad = [
        bad_row(row.number, finding.reason, finding.detail, raw=raw) for finding in findings[:MAX_FINDINGS]
    ]
    if (more := len(findings) - len(bad)) > 0:
        bad.append(bad_row(row.number, findings[-1].reason, f"and {more} more findings in this row", raw=raw))
    return tuple(bad)


def _fields(shape: Shape, value: object) -> Mapping[str, object]:
    if isinstance(value, tuple):
        columns = cast("tuple[str, ...]", value)
        if len(columns) != len(shape.needs):
            detail = f"{len(columns)} columns, {len(shape.needs)} are wanted: {_needs(shape)}"
            raise Unusable(Reason.WRONG_COLUMN_COUNT, detail)
        return {keys[0]: column for keys, column in zip(shape.needs, columns, strict=True)}
    if not isinstance(value, dict):
        raise Unusable(Reason.WRONG_TYPE, f"the row is {type_name(value)}, an object is wanted")
    row = cast("dict[str, object]", value)
    if not _fits(shape, row):
        absent = _absent(shape, row)
        raise Unusable(Reason.MISSING_FIELD, f"{', '.join(absent)} is missing; the row has {outline(row)}")
    return row


def _conversations(shape: Shape, row: Mapping[str, object]) -> Iterable[Sequence[Message] | Unusable]:
    match shape:
        case Messages():
            return [turns_of(row["messages"], "messages")]
        case ShareGpt():
            turns = turns_of(row["conversations"], "conversations")
            return [turns if turns and turns[0].role == "system" else [*system_turns(row), *turns]]
        case Instances():
            return instance_turns(row)
        case MessageTree():
            return tree_paths(row["prompt"])
        case Alpaca():
            prompt = with_input(first_text(row, "instruction"), first_value(row, "input", "context"))
            answer = first_text(row, "output", "response")
            return [[*system_turns(row), *history_turns(row), *pair(prompt, answer)]]
        case FlanCot():
            return [pair(_unescaped(row, "input"), _rationale_and_answer(row))]
        case PromptCompletion():
            return [pair(first_text(row, "prompt"), first_text(row, "completion"))]
        case QuestionAnswer():
            return [pair(first_text(row, "question"), first_text(row, "answer"))]
        case _:
            assert_never(shape)


def _unescaped(row: Mapping[str, object], key: str) -> str:
    return first_text(row, key).replace("\\n", "\n").strip()


def _rationale_and_answer(row: Mapping[str, object]) -> str:
    """Return the rationale, a line break and the answer: the model learns to reason first."""
    answer = _unescaped(row, "answer")
    return f"{_unescaped(row, 'rationale')}\n{answer}" if answer else ""
