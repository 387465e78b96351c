"""A made-up pool of any size: twelve files of three row shapes, half of them compressed, repeats and dirt.

The same rows and seed give the same bytes. Sentences are drawn from a few thousand, ready as JSON text, so
that writing a million rows takes well under a minute.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

SHAPES = ("messages", "alpaca", "sharegpt")
FILES_A_SHAPE = 4
REPEATED, BROKEN, FOLLOWED_UP = 0.03, 0.001, 0.15
_SENTENCES, _CHUNK_ROWS = 4096, 4096
_SYLLABLES = (
    "ka", "lo", "mi", "ren", "ta", "su", "vel", "dor", "an", "ith", "pe", "qua", "né", "数", "ost", "bri",
)  # fmt: skip
_DIRT = (b"not JSON at all", b'{"half": "a row', b'{"other": "keys"}', b'{"messages": null}', b"\xff\xfe\x00")


@dataclass(frozen=True)
class Exchange:
    """One row before it has a shape: JSON text without its quotes, `more` a second question and answer."""

    prompt: str
    answer: str
    more: tuple[str, str] | None


def pool_paths(folder: Path) -> list[Path]:
    """Return the files of a pool in pool order: those of a shape together, plain and compressed in turn."""
    return [
        folder / shape / f"part-{number}.jsonl{'.gz' if number % 2 else ''}"
        for shape in SHAPES
        for number in range(FILES_A_SHAPE)
    ]


def write_pool(folder: Path, rows: int, *, seed: int = 0) -> list[Path]:
    """Write a pool and return its files.

    Args:
        folder: where; it gets a folder for each shape.
        rows: rows in all, broken ones included.
        seed: decides every byte.
    """
    sentences = _sentences(np.random.default_rng([seed, 0]))
    paths = pool_paths(folder)
    shares = [rows * (place + 1) // len(paths) - rows * place // len(paths) for place in range(len(paths))]
    first = 0
    for place, (path, count) in enumerate(zip(paths, shares, strict=True)):
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, 1, place])
        shaped = _SHAPED[path.parent.name]
        with _created(path) as file:
            for lines in _chunks(sentences, rng, range(first, first + count), shaped):
                file.write(lines)
        first += count
    return paths


def change_pool(path: Path) -> dict[str, int]:
    """Change one file as a person would: 1 % of its rows go, 1 % get another answer, 1 % are new.

    Returns:
        How many rows were removed, edited and added.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    each = max(1, len(lines) // 100)
    edited = [_edited(line) for line in lines[each : 2 * each]]
    added = [_row(f"{path.parent.name} new {number}").encode() for number in range(each)]
    path.write_bytes(b"".join([*edited, *lines[2 * each :], *added]))
    return {"removed": each, "edited": sum(map(_differs, edited, lines[each : 2 * each])), "added": each}


def _edited(line: bytes) -> bytes:
    return line.replace(b'"}]}\n', b' Corrected."}]}\n')


def _differs(one: bytes, other: bytes) -> bool:
    return one != other


def _row(name: str) -> str:
    turns = [
        {"role": "user", "content": f"What is {name}?"},
        {"role": "assistant", "content": f"It is {name}."},
    ]
    return json.dumps({"messages": turns}) + "\n"


def _sentences(rng: np.random.Generator) -> list[str]:
    """Return sentences of five to sixteen words; one in eight ends in a line break, one in sixteen quotes."""
    syllables = np.array(_SYLLABLES)
    words = np.array(["".join(rng.choice(syllables, size=rng.integers(1, 4))) for _ in range(3000)])
    found: list[str] = []
    for number in range(_SENTENCES):
        text = " ".join(rng.choice(words, size=rng.integers(5, 17))).capitalize()
        text = f'"{text}", they said' if number % 16 == 0 else text
        found.append(json.dumps(text + (".\n" if number % 8 == 1 else ". "), ensure_ascii=False)[1:-1])
    return found


def _chunks(
    sentences: Sequence[str], rng: np.random.Generator, numbers: range, shaped: Callable[[Exchange, int], str]
) -> Iterator[bytes]:
    """Give the lines of a file, some thousand rows at a time.

    A repeat asks what an earlier row of its chunk asked, in capitals and with more blanks, and is answered
    anew.
    """
    for start in range(0, len(numbers), _CHUNK_ROWS):
        chunk = numbers[start : start + _CHUNK_ROWS]
        drawn = rng.integers(0, len(sentences), size=(len(chunk), 14)).tolist()
        sizes = rng.integers((1, 4), (4, 11), size=(len(chunk), 2)).tolist()
        kinds, earlier = rng.random((len(chunk), 2)).tolist(), rng.random(len(chunk)).tolist()
        lines: list[bytes] = []
        prompts: list[str] = []
        for at, number in enumerate(chunk):
            picked = [sentences[place] for place in drawn[at]]
            asked, told = sizes[at]
            kind, followed = kinds[at]
            prompt = f"Task {number}: {''.join(picked[:asked])}"
            if kind < REPEATED and prompts:
                prompt = "  " + prompts[int(earlier[at] * len(prompts))].replace("Task", "TASK", 1)
            prompts.append(prompt)
            if kind > 1 - BROKEN:
                lines.append(_DIRT[number % len(_DIRT)])
                continue
            more = (picked[-1], picked[-2]) if followed < FOLLOWED_UP else None
            lines.append(
                shaped(Exchange(prompt, "".join(picked[asked : asked + told]), more), number).encode()
            )
        yield b"\n".join(lines) + b"\n"


def _messages(row: Exchange, number: int) -> str:
    turns = [("user", row.prompt), ("assistant", row.answer)]
    turns += [("user", row.more[0]), ("assistant", row.more[1])] if row.more else []
    inside = ", ".join(f'{{"role": "{role}", "content": "{text}"}}' for role, text in turns)
    return f'{{"id": "m-{number}", "messages": [{inside}]}}'


def _alpaca(row: Exchange, number: int) -> str:
    given = row.more[0] if row.more else ""
    return f'{{"instruction": "{row.prompt}", "input": "{given}", "output": "{row.answer}", "id": {number}}}'


def _sharegpt(row: Exchange, number: int) -> str:
    turns = [("human", row.prompt), ("gpt", row.answer)]
    turns += [("human", row.more[0]), ("gpt", row.more[1])] if row.more else []
    inside = ", ".join(f'{{"from": "{name}", "value": "{text}"}}' for name, text in turns)
    return f'{{"id": "s-{number}", "conversations": [{inside}]}}'


_SHAPED: dict[str, Callable[[Exchange, int], str]] = {
    "messages": _messages,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}


@contextmanager
def _created(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        if path.suffix != ".gz":
            yield file
            return
        # without name and time, which would make the bytes of every day others
        with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
            yield cast("BinaryIO", packed)
