"""Files that a hostile or careless hand could put into a pool, of every container, shape and kind of damage.

The same seed gives the same bytes. A file knows how many rows were written into it, where that can be said:
by construction, or by counting its lines; never by asking the readers that it is for.
"""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

CONTAINERS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = ("", ".gz", ".zst")
SHAPES = (
    "messages", "sharegpt", "instances", "oasst", "alpaca", "flan_cot", "prompt_completion", "question_answer",  # noqa: E501
)  # fmt: skip
# The shapes whose rows are flat: a table of texts can hold them.
FLAT_SHAPES = ("alpaca", "flan_cot", "prompt_completion", "question_answer")
_HOSTILE_ROWS, _DAMAGED_FILES, _LONG_TEXTS = 0.2, 0.4, 0.0002
_WORDS = [
    "count",
    "the",
    "apples",
    "of",
    "Łódź",
    "and",
    "数",
    "in",
    "a",
    "train",
    "that",
    "leaves",
    "at",
    "noon",
    "née",
    "or",
    "not",
    "🦊",
    "knows",
    "42",
    "answers",
]
_TEXTS = (
    "", " ", "\t", "\x00", "a\x00b", "\x1b[31mred\x1b]0;title\x07", "\u202eright to left\u202c", "\u2066\u2069",  # noqa: E501
    "\u200b", "zero\u200dwidth\u200b\ufeff", "\ufeffmark", "\u2028\u2029\x85\x0b\x0c", "\r", "a\rb\r\nc\nd",
    "e\u0301" * 50, "Z" + "\u0300" * 400, "\U0010ffff\uffff\ufffe\ue0f1\ue0f2</s>", "\ud800", "\udfff\ud800",
    "<|im_start|>system\nobey<|im_end|>", "</s><s>[INST] x [/INST]", "<|endoftext|>", "</s></s>", "\\n", "\\",
    "<script>alert(1)</script>", "'; DROP TABLE samples; --", "{{ 7 * 7 }}{% for x in y %}", "%s%n{0}", '"', '""',  # noqa: E501
    "=cmd|' /C calc'!A0", "'", "\\ud83d", "a,b", "a\tb", "noinput", "N/A", "../../etc/passwd", "ﷺ" * 30, "NaN",  # noqa: E501
    "null", "x" * 5000, "😀" * 500, "\x01\x02\x7f", "[" * 300, "\u0130\u0131\ufb03ß",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 3.5, 10**30, -(10**400), float("nan"), float("inf"), -float("inf"), 1e308, [], {},  # noqa: E501
    [[]], [None], {"": ""}, [1, "a", None], {"text": "x"}, [{"type": "text", "text": "part"}], [{"type": "image"}],  # noqa: E501
)  # fmt: skip
_ROLES = (
    "system",
    "user",
    "assistant",
    "human",
    "gpt",
    "tool",
    "USER ",
    "",
    "prompter",
    "\ud800",
    "developer",
)
_HUGE_RANK = (
    '{"message_tree_id": "t", "prompt": {"text": "Q", "role": "prompter", "replies": '
    '[{"text": "A", "role": "assistant", "rank": ' + "9" * 400 + "}]}}"
)
# Lines that stand where a row should; each is one line, and one element of an array where its brackets pair.
_PAIRED_LINES = (
    '"text"', "3", "null", "[]", "{}", "NaN", "-Infinity", '{"prompt": "Q", "completion": NaN}', "[[[[1]]]]",
    '{"prompt": "a", "prompt": "b", "completion": "c", "completion": 4}',
    '{"prompt": ' + "9" * 5000 + ', "completion": "A"}', '{"prompt": "Q", "completion": "A", "prompt": null}',
    '{"prompt": "\\ud800", "completion": "\\udc00\\ud800"}', '{"prompt": "Q\\u0000", "completion": "A"}',
    "[" * 1500 + "]" * 1500, '{"a":' * 1200 + "1" + "}" * 1200, '{"prompt": 1e999, "completion": -0}',
    "1" * 4299, "tru", "0x10", "'Q'", "<row/>", "{'prompt': 'Q'}", _HUGE_RANK,
)  # fmt: skip
_UNPAIRED_LINES = (
    '{"prompt": "Q"', "}", "]", '{"prompt": "Q", "completion": "A}', "[" * 3000, '"', "{]", "[}", '{"a": [}', ",",  # noqa: E501
    ",,", "[" * 200 + "}" * 200, '\\"', '{"prompt": "Q" "completion": "A"}', "{" * 100_000,
)  # fmt: skip


@dataclass(frozen=True)
class HostileFile:
    """A made file: the end of its name, its bytes, and the rows written into it (None: nobody can say)."""

    suffix: str
    content: bytes
    rows: int | None
    shape: str
    damage: str = "none"


def hostile_file(seed: str, rows: int) -> HostileFile:
    """Return a file of about so many rows.

    Args:
        seed: decides every byte.
        rows: how many rows to write, before damage.
    """
    rng = random.Random(seed)
    container = rng.choice(CONTAINERS)
    shape = rng.choice(FLAT_SHAPES if container in (".csv", ".tsv") else SHAPES)
    content, written = _WRITERS[container](rng, shape, rows)
    damage = "none"
    if rng.random() < _DAMAGED_FILES:
        damage = rng.choice(list(_DAMAGES))
        content, written = _DAMAGES[damage](rng, content), None
        if container == ".jsonl":
            written = written_lines(content)
    compression = rng.choice(COMPRESSIONS)
    content = _packed(rng, content, compression)
    if compression and rng.random() < _DAMAGED_FILES / 2:
        content, how = _damaged_package(rng, content, compression)
        damage, written = f"{damage}, package: {how}", None
    return HostileFile(container + compression, content, written, shape, damage)


def written_lines(content: bytes) -> int:
    """Return how many lines are not blank, which is how many rows a file of JSON lines has."""
    return sum(1 for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())


def hostile_text(rng: random.Random) -> str:
    """Return a text, most often an ordinary sentence."""
    draw = rng.random()
    if draw < _LONG_TEXTS:
        return rng.choice(("x", "\u200b", "数", "<|im_end|>")) * rng.choice((100_000, 1_000_000 // 3))
    if draw < 0.95:
        return f"{' '.join(rng.choices(_WORDS, k=rng.randint(2, 12)))} {rng.getrandbits(40)}"
    if draw < 0.98:
        return rng.choice(_TEXTS)
    return "".join(rng.choice(_TEXTS)[:50] for _ in range(rng.randint(1, 6)))


def hostile_row(rng: random.Random, shape: str) -> dict[str, Any]:
    """Return a row of a shape, as JSON holds it; one in some has a wrong type, a key too many or too few."""
    row = _ROWS[shape](rng)
    if rng.random() < _HOSTILE_ROWS:
        key = rng.choice(list(row))
        match rng.randrange(5):
            case 0:
                del row[key]
            case 1:
                row[rng.choice(("system", "history", "input", "id", "", "prompt\ud800"))] = _value(rng)
            case 2:
                row[key.upper()] = row.pop(key)
            case _:
                row[key] = _value(rng)
    return row


def _value(rng: random.Random) -> Any:
    match rng.randrange(3):
        case 0:
            return hostile_text(rng)
        case 1:
            return rng.choice(_VALUES)
        case _:
            return [_value(rng) for _ in range(rng.randrange(3))]


def _turns(rng: random.Random, role: str, content: str, names: Sequence[str]) -> list[Any]:
    pairs = 100 if rng.random() < 0.005 else rng.randint(1, 3)
    turns: list[Any] = [{role: names[at % 2], content: hostile_text(rng)} for at in range(2 * pairs)]
    if rng.random() < 0.05:
        turns[rng.randrange(len(turns))] = {role: rng.choice(_ROLES), content: _value(rng)}
    if rng.random() < 0.02:
        turns.insert(rng.randrange(len(turns)), _value(rng))
    return turns


def _tree(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    node: dict[str, Any] = {"text": hostile_text(rng), "role": ("prompter", "assistant")[depth % 2]}
    if depth < rng.choice((2, 3, 4, 30)):
        node["replies"] = [_tree(rng, depth + 1) for _ in range(1 if depth > 3 else rng.randint(1, 2))]
    if rng.random() < 0.05:
        node[rng.choice(("rank", "deleted", "replies", "role"))] = _value(rng)
    return node


def _instances(rng: random.Random) -> list[Any]:
    made: list[Any] = [
        {"input": hostile_text(rng), "output": hostile_text(rng)} for _ in range(rng.randint(1, 4))
    ]
    return made if rng.random() < 0.9 else [*made, _value(rng)]


def _flat_row(*keys: str) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {key: hostile_text(rng) for key in keys}


_ROWS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "messages": lambda rng: {"messages": _turns(rng, "role", "content", ("user", "assistant"))},
    "sharegpt": lambda rng: {"conversations": _turns(rng, "from", "value", ("human", "gpt"))},
    "instances": lambda rng: {"instruction": hostile_text(rng), "instances": _instances(rng)},
    "oasst": lambda rng: {"message_tree_id": "t", "prompt": _tree(rng)},
    "alpaca": _flat_row("instruction", "input", "output"),
    "flan_cot": _flat_row("input", "answer", "rationale"),
    "prompt_completion": _flat_row("prompt", "completion"),
    "question_answer": _flat_row("question", "answer"),
}


def _json_line(rng: random.Random, shape: str) -> bytes:
    if rng.random() < 0.02:
        return rng.choice(_PAIRED_LINES).encode()
    text = json.dumps(hostile_row(rng, shape), ensure_ascii=rng.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.01:
        at = rng.randrange(len(data))
        data = data[:at] + rng.choice((b"\x00", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80")) + data[at:]
    return data


def _jsonl(rng: random.Random, shape: str, rows: int) -> tuple[bytes, int | None]:
    lines = [
        rng.choice(_UNPAIRED_LINES).encode() if rng.random() < 0.01 else _json_line(rng, shape)
        for _ in range(rows)
    ]
    end = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n", b"\n \t\n"))
    return end.join(lines) + (end if rng.random() < 0.5 else b""), rows


def _json(rng: random.Random, shape: str, rows: int) -> tuple[bytes, int | None]:
    if rng.random() < 0.2:
        # what begins with a bracket is an array to the reader
        content = _jsonl(rng, shape, rows)[0]
        return content, None if content.lstrip().startswith(b"[") else rows
    elements = [_json_line(rng, shape) for _ in range(rows)]
    written: int | None = rows
    if rng.random() < 0.2:
        elements[rng.randrange(rows)] = rng.choice(_UNPAIRED_LINES).encode()
        written = None
    blank = rng.choice((b"", b" ", b"\n", b"\r\n\t"))
    return blank + b"[" + blank + (b"," + blank).join(elements) + blank + b"]" + blank, written


def _cells(rng: random.Random, shape: str) -> list[str]:
    cells = [_cell_text(value) for value in hostile_row(rng, shape).values()] or ["x"]
    if rng.random() < 0.02:
        cells = cells[: rng.randrange(1, len(cells) + 1)] + ["more"] * rng.randrange(3)
    return cells if any(cell.strip() for cell in cells) else ["x"]


def _cell_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()


def _csv(rng: random.Random, shape: str, rows: int) -> tuple[bytes, int | None]:
    file = io.StringIO(newline="")
    write = csv.writer(file, lineterminator=rng.choice(("\n", "\r\n"))).writerow
    write(list(_ROWS[shape](rng)))
    for _ in range(rows):
        write(_cells(rng, shape))
    return file.getvalue().encode(), rows


def _tsv(rng: random.Random, shape: str, rows: int) -> tuple[bytes, int | None]:
    lines = ["\t".join(_ROWS[shape](rng).keys())] if shape != "flan_cot" or rng.random() < 0.5 else []
    lines += [
        "\t".join(cell.replace("\n", "\\n").replace("\t", " ") for cell in _cells(rng, shape))
        for _ in range(rows)
    ]
    return "\n".join(lines).encode(), rows


def _parquet(rng: random.Random, shape: str, rows: int) -> tuple[bytes, int | None]:
    made = [
        {key: _cell_text(value) if isinstance(value, str) else value for key, value in row.items()}
        for row in (_ROWS[shape](rng) for _ in range(rows))
    ]
    kind = rng.choice((pa.timestamp("ms"), pa.date32(), pa.int64(), pa.float64(), pa.binary(), pa.null()))
    try:
        table = pa.Table.from_pylist(made)
        if rng.random() < 0.3:
            odd = pa.array([_odd_value(rng, kind) for _ in range(rows)], kind)
            table = table.set_column(rng.randrange(table.num_columns), rng.choice(list(made[0])), odd)
    except (pa.ArrowException, UnicodeError, TypeError, OverflowError):  # a mixture that no column can hold
        table = pa.Table.from_pylist([{k: _cell_text(v) for k, v in row.items()} for row in made])
    file = io.BytesIO()
    pq.write_table(
        table,
        file,
        compression=rng.choice(("none", "snappy", "gzip", "zstd", "lz4", "brotli")),
        row_group_size=rng.choice((10, 70, 1000)),
        use_dictionary=rng.random() < 0.5,
        data_page_version=rng.choice(("1.0", "2.0")),
    )
    return file.getvalue(), rows


def _odd_value(rng: random.Random, kind: pa.DataType) -> Any:
    if pa.types.is_null(kind) or rng.random() < 0.2:
        return None
    if pa.types.is_binary(kind):
        return rng.choice((b"\xff\xfe", b"ascii", b""))
    if pa.types.is_floating(kind):
        return rng.choice((float("nan"), 1.5, -0.0))
    number = rng.choice((-1, 1)) * rng.getrandbits(31 if pa.types.is_date32(kind) else 62)
    return number if pa.types.is_int64(kind) else pa.scalar(number, kind)


_WRITERS: dict[str, Callable[[random.Random, str, int], tuple[bytes, int | None]]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet
}  # fmt: skip


def _flipped(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 3, 50))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _spliced(rng: random.Random, content: bytes) -> bytes:
    piece = rng.choice(
        (
            b"\x00" * 100, b"\xff\xfe", b'"', b"\n", b"\r", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"[", b"]", b"},{",  # noqa: E501
            b"\\", b'x","y\n' * 3000, b'"",' * 3000, b"[" * 50_000 + b"}" * 50_000, b"\n" * 5000, rng.randbytes(200),  # noqa: E501
        )
    )  # fmt: skip
    at = rng.randrange(len(content) + 1)
    return content[:at] + piece + content[at:]


def _marked(rng: random.Random, content: bytes) -> bytes:
    return b"\xef\xbb\xbf" * rng.choice((1, 1, 2)) + content


def _wide(rng: random.Random, content: bytes) -> bytes:
    return content.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-16-le", "utf-32-be")))


def _with_tail(rng: random.Random, content: bytes) -> bytes:
    return content + rng.choice((b"garbage", b"\n[1]", b"\x00" * 50, b"]", b"\n", b"PAR1", content[:500]))


def _other_bytes(rng: random.Random, _: bytes) -> bytes:
    return rng.choice((b"", b"\n", b" ", b"[", b"[]", b"PAR1", b"PAR1PAR1", rng.randbytes(300)))


_DAMAGES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "bits flipped": _flipped,
    "cut": _cut,
    "bytes put in": _spliced,
    "byte order mark": _marked,
    "UTF-16 or UTF-32": _wide,
    "tail": _with_tail,
    "other bytes": _other_bytes,
}


def _packed(rng: random.Random, content: bytes, compression: str) -> bytes:
    if not compression:
        return content
    # several frames or members in a row are one stream
    cut = rng.randrange(len(content) + 1) if rng.random() < 0.3 else len(content)
    parts = [content[:cut], content[cut:]] if cut < len(content) else [content]
    pack = gzip.compress if compression == ".gz" else zstandard.compress
    return b"".join(pack(part, 1) for part in parts)


def _damaged_package(rng: random.Random, content: bytes, compression: str) -> tuple[bytes, str]:
    match rng.randrange(5):
        case 0:
            return content[: rng.randrange(len(content))], "cut"
        case 1:
            return content + rng.choice((b"\x00" * 100, b"garbage", content[:20])), "tail"
        case 2:
            other = zstandard.compress if compression == ".gz" else gzip.compress
            return other(content), "of the other kind"
        case 3:
            return content[rng.randrange(1, 20) :], "head gone"
        case _:
            return _flipped(rng, content), "bits flipped"
