"""Decompression bombs, each in a process of its own with a limit on its memory: a clear end, in seconds."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

PROJECT = Path(__file__).resolve().parents[2]
MIB = 2**20
GOOD = b'{"prompt": "Q", "completion": "A"}\n'
# An import takes a good part of the address space; the rest is what one row may take several times over.
READ = f"""
import resource, sys, time
from pathlib import Path
from clusterucb_core.pool.formats import read_file
resource.setrlimit(resource.RLIMIT_AS, ({3 * 1024 * MIB},) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
rows = list(read_file(Path(sys.argv[1]), source="s"))
print(sum(len(row.samples) for row in rows), rows[-1].bad[-1].reason if rows[-1].bad else "none")
print(time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def windowed() -> bytes:
    """A frame that asks for a window of 2 GiB (RFC 8878, 3.1.1.1.2), with one raw block."""
    return b"\x28\xb5\x2f\xfd\x00\xa8" + (len(GOOD) << 3 | 1).to_bytes(3, "little") + GOOD


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zeros.jsonl.gz": (lambda: gzip.compress(GOOD + bytes(1000 * MIB), 1), "1 broken_container"),
    "zeros.jsonl.zst": (lambda: zstandard.compress(GOOD + bytes(1000 * MIB), 1), "1 broken_container"),
    "breaks.jsonl.gz": (lambda: gzip.compress(GOOD + b"\n" * (100 * MIB), 1), "1 broken_container"),
    "breaks.csv.gz": (
        lambda: gzip.compress(b'prompt,completion\nQ,A\n"' + b"\n" * (100 * MIB), 1),
        "1 broken_container",
    ),
    "brackets.json.gz": (lambda: gzip.compress(b"[" * (100 * MIB), 1), "0 broken_container"),
    "pairs.json": (lambda: b"[" + b"[" * 2 * MIB + b"}" * 2 * MIB + b"]", "0 broken_container"),
    "deep.jsonl": (lambda: b"[" * MIB + b"\n" + GOOD, "1 none"),
    "window.jsonl.zst": (windowed, "0 broken_container"),
    "zeros.parquet.zst": (lambda: zstandard.compress(bytes(1000 * MIB), 1), "0 broken_container"),
    "texts.jsonl": (
        lambda: json.dumps({"instruction": "x" * 2 * MIB, "instances": [{"output": "y"}] * 90_000}).encode(),
        "7 row_too_long",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_a_record_within_seconds_and_little_memory(tmp_path, name):
    make, expected = BOMBS[name]
    (tmp_path / name).write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / name)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome, figures = done.stdout.splitlines()
    seconds, mib = map(float, figures.split())
    assert outcome == expected
    assert seconds < 15
    assert mib < 400
