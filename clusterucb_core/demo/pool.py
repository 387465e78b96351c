"""The demo pool: one file a family, each in a shape and container of its own, with planted dirt.

Writes `pool/<family>.*` of the demo folder. The bytes depend on the seed alone.
"""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from clusterucb_core.demo import dirt
from clusterucb_core.demo.exchanges import Exchange
from clusterucb_core.demo.families import FAMILY_SIZES, Family, draw_different, generator_of
from clusterucb_core.seeds import child_rng

T = TypeVar("T")


def write_pool(folder: Path, leaked: Sequence[Exchange], *, seed: int) -> dict[Family, Path]:
    """Write the pool files.

    Args:
        folder: where they go; must exist.
        leaked: test rows of the target that are planted in the pool.
        seed: the demo's seed.

    Returns:
        The file of each family.
    """
    files: dict[Family, Path] = {}
    for family, size in FAMILY_SIZES.items():
        rng = child_rng(seed, "demo-pool", family)
        exchanges = draw_different(generator_of(family), size, rng=rng)
        name, content = pool_file(family, exchanges, leaked, rng=rng)
        files[family] = folder / name
        files[family].write_bytes(content)
    return files


def pool_file(
    family: Family, exchanges: Sequence[Exchange], leaked: Sequence[Exchange], *, rng: np.random.Generator
) -> tuple[str, bytes]:
    """Return the name and the bytes of a family's file, with the family's dirt mixed in."""
    match family:
        case "arithmetic_stories":
            return f"{family}.json", _alpaca_json(exchanges, rng)
        case "capitals":
            return f"{family}.csv", _question_csv(exchanges, rng)
        case "dates":
            return f"{family}.parquet", _question_parquet(exchanges, rng)
        case "json_extraction":
            return f"{family}.jsonl.gz", _message_lines(exchanges, rng)
        case "small_talk":
            return f"{family}.json", _sharegpt_json(exchanges, rng)
        case "sorting":
            return f"{family}.tsv", _rationale_tsv(exchanges, rng)
        case "string_puzzles":
            return f"{family}.jsonl.zst", _response_lines(exchanges)
        case "unit_conversion":
            return f"{family}.jsonl", _completion_lines(exchanges, leaked, rng)
        case _:
            assert_never(family)


def _mixed(rows: Sequence[T], planted: Sequence[T], rng: np.random.Generator) -> list[T]:
    """Return the rows in their order with the planted ones at random places, never the first."""
    mixed = list(rows)
    for row in planted:
        mixed.insert(int(rng.integers(1, len(mixed) + 1)), row)
    return mixed


def _alpaca_json(exchanges: Sequence[Exchange], rng: np.random.Generator) -> bytes:
    rows = [_alpaca_row(exchange, "output") for exchange in exchanges]
    empty = [
        {"instruction": f"Tell story number {at}.", "input": "", "output": " "}
        for at in range(dirt.BAD_ANSWERS)
    ]
    return json.dumps(_mixed(rows, empty, rng), indent=1).encode()


def _question_csv(exchanges: Sequence[Exchange], rng: np.random.Generator) -> bytes:
    rows = [(exchange.prompt, exchange.completion) for exchange in exchanges]
    repeated = [(f"  {prompt.upper()} ", answer) for prompt, answer in rows[: dirt.REPEATED_PROMPTS]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(("question", "answer"))
    writer.writerows(_mixed(rows, repeated, rng))
    return text.getvalue().encode("utf-8-sig")


def _question_parquet(exchanges: Sequence[Exchange], rng: np.random.Generator) -> bytes:
    rows: list[dict[str, str | None]] = [
        {"question": exchange.prompt, "answer": exchange.completion} for exchange in exchanges
    ]
    unanswered: list[dict[str, str | None]] = [
        {"question": f"Which date is {at} days after today?", "answer": None}
        for at in range(dirt.NULL_ANSWERS)
    ]
    columns = pa.schema([("question", pa.string()), ("answer", pa.string())])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(_mixed(rows, unanswered, rng), schema=columns), buffer)
    return buffer.getvalue()


def _message_lines(exchanges: Sequence[Exchange], rng: np.random.Generator) -> bytes:
    lines = [
        _line({"messages": _turns(exchange, ("role", "content"), "assistant")}) for exchange in exchanges
    ]
    broken = [line[: len(line) // 2] for line in lines[: dirt.BAD_JSON_LINES]]
    return gzip.compress(_joined(_mixed(lines, broken, rng)), mtime=0)


def _sharegpt_json(exchanges: Sequence[Exchange], rng: np.random.Generator) -> bytes:
    rows = [{"conversations": _turns(exchange, ("from", "value"), "gpt")} for exchange in exchanges]
    strange = [
        {
            "conversations": [
                {"from": "narrator", "value": "It is raining."},
                {"from": "gpt", "value": "Is it?"},
            ]
        }
    ] * dirt.BAD_ROLES
    return json.dumps(_mixed(rows, strange, rng), indent=1).encode()


def _rationale_tsv(exchanges: Sequence[Exchange], rng: np.random.Generator) -> bytes:
    lines = [f"{exchange.prompt}\t{exchange.answer}\t{exchange.rationale}".encode() for exchange in exchanges]
    short = [f"Sort these numbers: {at}, 1, 5\t1, 5".encode() for at in range(dirt.SHORT_LINES)]
    return _joined(_mixed(lines, short, rng))


def _response_lines(exchanges: Sequence[Exchange]) -> bytes:
    rows = [_alpaca_row(exchange, "response") for exchange in exchanges]
    blank = [row for row in rows if not row["input"]][: dirt.PLACEHOLDERS]
    for at, row in enumerate(blank):
        row["input"] = dirt.PLACEHOLDER_WORDS[at % len(dirt.PLACEHOLDER_WORDS)]
    return zstandard.ZstdCompressor(level=3).compress(_joined([_line(row) for row in rows]))


def _completion_lines(
    exchanges: Sequence[Exchange], leaked: Sequence[Exchange], rng: np.random.Generator
) -> bytes:
    lines = [_completion_line(exchange.prompt, exchange.completion) for exchange in (*exchanges, *leaked)]
    planted = lines[: dirt.REPEATED_ROWS]
    planted += [_completion_line(f"Convert {at} parsecs.", "") for at in range(dirt.EMPTY_AFTER_MARKER)]
    # a degree sign as Latin-1 writes it
    planted += [
        b'{"prompt": "What is %d \xb0C in \xb0F?", "completion": "Hot."}' % at
        for at in range(dirt.NON_UTF8_LINES)
    ]
    return _joined(_mixed(lines, planted, rng))


def _completion_line(prompt: str, completion: str) -> bytes:
    return _line({"prompt": prompt, "completion": completion + dirt.END_MARKER})


def _alpaca_row(exchange: Exchange, answer_key: str) -> dict[str, str]:
    return {"instruction": exchange.instruction, "input": exchange.context, answer_key: exchange.completion}


def _turns(exchange: Exchange, keys: tuple[str, str], assistant: str) -> list[dict[str, str]]:
    role, text = keys
    user = "human" if assistant == "gpt" else "user"
    turns = [{role: user, text: exchange.prompt}, {role: assistant, text: exchange.completion}]
    if exchange.follow_up is not None:
        question, answer = exchange.follow_up
        turns += [{role: user, text: question}, {role: assistant, text: answer}]
    return turns


def _line(row: object) -> bytes:
    return json.dumps(row).encode()


def _joined(lines: Sequence[bytes]) -> bytes:
    return b"\n".join(lines) + b"\n"
