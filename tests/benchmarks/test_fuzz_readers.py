"""Coverage-guided fuzzing in short form; it needs atheris, which is not in the locked environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def fuzz(*line: str) -> str:
    paths = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "benchmarks/fuzz_readers.py", *line],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("what", [[], ["--configs"]])
def test_a_quarter_of_a_minute_finds_nothing(tmp_path, what):
    pytest.importorskip("atheris", reason="install requirements-atheris.lock beside requirements.lock")
    fuzz("--folder", str(tmp_path), "--seconds", "15", *what)
    assert not list((tmp_path / "found").iterdir())
    found = json.loads(fuzz("--folder", str(tmp_path), "--summary"))
    assert found["executions"] > 100
    assert found["findings"] == []
