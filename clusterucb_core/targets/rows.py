"""Reads the rows of one target file; every bad row is an error, since a target is small and hand-made."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import zstandard

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.containers import inner_suffix, open_bytes
from clusterucb_core.errors import InvalidTarget
from clusterucb_core.records import CodeTest, Message, Role, TargetRow

Split = Literal["validation", "test"]

_SUFFIXES = (".jsonl", ".json")
_ROLES: tuple[Role, ...] = get_args(Role)
# Rows are held and checked together; the largest test sets in use have a tenth of this.
MAX_TARGET_BYTES = 128 * 1024 * 1024
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)

_Row = dict[str, Any]


def read_rows(path: Path, split: Split, *, subtask_key: str, default_subtask: str) -> tuple[TargetRow, ...]:
    """Return the rows of one split of a target file, in file order.

    Args:
        path: `.jsonl` or `.json` (an array), plain or `.gz` or `.zst`.
        split: which rows to take where rows carry the key `split`; a file without it gives all its rows.
        subtask_key: key of a row that names its subtask.
        default_subtask: subtask of the rows that name none.

    Returns:
        One row each. The id is the hash of the content; a repeated row gets an id of its own.

    Raises:
        InvalidTarget: the file cannot be read or unfolds to more than `MAX_TARGET_BYTES`, a row cannot be
            used, or no row belongs to the split.
    """
    rows: list[TargetRow] = []
    seen: dict[str, int] = {}
    split_used: bool | None = None
    for place, row in _records(path):
        row_split = _split(row, place)
        split_used = _same_use_of_split(split_used, row_split, place=place)
        parsed = _parse(row, place, subtask_key=subtask_key, default_subtask=default_subtask)
        if row_split not in (None, split):
            continue
        copies = seen[parsed.row_id] = seen.get(parsed.row_id, -1) + 1
        rows.append(parsed if copies == 0 else _renamed(parsed, copies))
    if not rows:
        reason = f"no row with split {split!r}" if split_used else "no row"
        raise InvalidTarget(f"{path} has {reason}; add one or name another file for target.{split}")
    return tuple(rows)


def _records(path: Path) -> Iterator[tuple[str, _Row]]:
    suffix = inner_suffix(path)
    if suffix not in _SUFFIXES:
        raise InvalidTarget(
            f"{path} ends in {path.suffix!r}; a target file is .jsonl or .json, plain or with .gz or .zst"
        )
    try:
        yield from _json_lines(path) if suffix == ".jsonl" else _json_array(path)
    except _BROKEN as error:
        raise InvalidTarget(f"{path} is damaged ({error}); write or download it again") from error
    except OSError as error:
        raise InvalidTarget(f"{path} cannot be read ({error}); check the path of the target file") from error


def _json_lines(path: Path) -> Iterator[tuple[str, _Row]]:
    left = MAX_TARGET_BYTES
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(left + 1):
            number += 1
            left -= len(line)
            _check_size(path, left)
            if line.strip():
                place = f"{path}, line {number}"
                yield place, _as_row(_decode(line, place), place)


def _json_array(path: Path) -> Iterator[tuple[str, _Row]]:
    with open_bytes(path) as file:
        data = file.read(MAX_TARGET_BYTES + 1)
    _check_size(path, MAX_TARGET_BYTES - len(data))
    content = _decode(data, str(path))
    if not isinstance(content, list):
        raise InvalidTarget(f"{path} holds {_seen(content)}, not an array of rows; wrap the rows in [ ]")
    for number, value in enumerate(cast("list[object]", content), start=1):
        place = f"{path}, row {number}"
        yield place, _as_row(value, place)


def _check_size(path: Path, left: int) -> None:
    if left < 0:
        raise InvalidTarget(
            f"{path} holds more than {MAX_TARGET_BYTES} bytes, unpacked; a target is some thousand rows: "
            "leave some out, or look whether the file is a decompression bomb"
        )


def _decode(data: bytes, place: str) -> object:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        bad = data[error.start : error.start + 8]
        raise InvalidTarget(
            f"{place}: byte {error.start} ({bad!r}) is not UTF-8; save it as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidTarget(f"{place}: not JSON ({error}): {_seen(data)}; write valid JSON there") from error


def _as_row(value: object, place: str) -> _Row:
    if not isinstance(value, dict):
        raise InvalidTarget(f"{place}: {_seen(value)} is not an object; a row is {{prompt, completion, ...}}")
    return cast("_Row", value)


def _split(row: _Row, place: str) -> Split | None:
    value = row.get("split")
    if value is not None and value not in get_args(Split):
        raise InvalidTarget(f"{place}: split is {_seen(value)}; use 'validation' or 'test'")
    return value


def _same_use_of_split(used: bool | None, split: Split | None, *, place: str) -> bool:
    if used is not None and used != (split is not None):
        raise InvalidTarget(
            f"{place}: split is {split!r}, but rows before it {'carry' if used else 'lack'} the key; "
            "give every row of the file a split, or none"
        )
    return split is not None


def _parse(row: _Row, place: str, *, subtask_key: str, default_subtask: str) -> TargetRow:
    messages = (
        _messages(row, place) if row.get("messages") is not None else _prompt_and_completion(row, place)
    )
    subtask = default_subtask if row.get(subtask_key) is None else _text(row, subtask_key, place=place)
    choices, answer_index = _choices(row, place)
    content = [[(m.role, m.content) for m in messages], subtask, choices, answer_index]
    return TargetRow(fingerprint(content), subtask, messages, choices, answer_index, _code(row, place))


def _renamed(row: TargetRow, copies: int) -> TargetRow:
    return replace(row, row_id=fingerprint(row.row_id, copies))


def _prompt_and_completion(row: _Row, place: str) -> tuple[Message, ...]:
    prompt = _text(row, "prompt", place=place)
    completion = _text(row, "completion", place=place)
    return Message("user", prompt), Message("assistant", completion)


def _messages(row: _Row, place: str) -> tuple[Message, ...]:
    turns: object = row["messages"]
    if "prompt" in row or "completion" in row:
        raise InvalidTarget(f"{place}: has messages and prompt or completion; keep one of the two forms")
    if not isinstance(turns, list):
        raise InvalidTarget(f"{place}: messages is {_seen(turns)}; give a list of {{role, content}}")
    messages = tuple(_message(turn, place) for turn in cast("list[object]", turns))
    roles = [message.role for message in messages]
    if "user" not in roles[:-1] or roles[-1] != "assistant":
        raise InvalidTarget(f"{place}: the roles are {roles}; give a user turn, and the gold answer last")
    return messages


def _message(turn: object, place: str) -> Message:
    if not isinstance(turn, dict):
        raise InvalidTarget(f"{place}: message {_seen(turn)} is not an object; give {{role, content}}")
    fields = cast("_Row", turn)
    role = fields.get("role")
    if role not in _ROLES:
        raise InvalidTarget(f"{place}: role is {_seen(role)}; use one of {', '.join(_ROLES)}")
    return Message(role, _text(fields, "content", place=place))


def _choices(row: _Row, place: str) -> tuple[tuple[str, ...], int | None]:
    choices: object = row.get("choices")
    index: object = row.get("answer_index")
    if choices is None and index is None:
        return (), None
    if not isinstance(choices, list) or not isinstance(index, int) or isinstance(index, bool):
        raise InvalidTarget(
            f"{place}: choices is {_seen(choices)} and answer_index {_seen(index)}; "
            "give a list of texts and a whole number, or neither"
        )
    options = cast("list[object]", choices)
    texts = tuple(_usable(option, f"{place}: choices[{i}]") for i, option in enumerate(options))
    if not 0 <= index < len(texts):
        raise InvalidTarget(f"{place}: answer_index is {index} with {len(texts)} choices; count them from 0")
    return texts, index


def _code(row: _Row, place: str) -> CodeTest | None:
    if row.get("test") is None or row.get("entry_point") is None:
        return None  # either key alone is a remark of the file's own, as any other key is
    entry_point = _text(row, "entry_point", place=place)
    if not entry_point.isidentifier():
        raise InvalidTarget(f"{place}: entry_point is {_seen(entry_point)}; give the name of a function")
    return CodeTest(entry_point, _text(row, "test", place=place))


def _text(row: _Row, key: str, *, place: str) -> str:
    if key not in row:
        raise InvalidTarget(f"{place}: has no {key!r}, its keys are {sorted(row)}; add it")
    return _usable(row[key], f"{place}: {key}")


def _usable(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidTarget(f"{name} is {_seen(value)}; give a text that is not blank")
    if not _encodes(value):
        raise InvalidTarget(f"{name} is {_seen(value)}, with half of a surrogate pair; remove that character")
    return value


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _seen(value: object) -> str:
    # ascii() and the cut keep a message printable whatever the file holds.
    shown = value if isinstance(value, bytes) else ascii(value)
    return f"{shown[:80]!s}{'...' if len(shown) > 80 else ''}"
