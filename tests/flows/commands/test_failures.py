"""How a command that fails ends, seen from outside."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "n_tracebacks"), [([], 0), (["--debug"], 1)])
def test_a_run_that_fails_says_why_on_one_line_and_shows_a_traceback_only_if_asked(
    home, config_file, flags, n_tracebacks
):
    line = [sys.executable, "-m", "flows", "run", str(config_file), "--set", "warmup.learning_rate=1e30"]
    ended = subprocess.run([*line, *flags], capture_output=True, text=True, check=False, timeout=400)
    assert ended.returncode == 1
    assert ended.stdout == ""
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: the loss at optimiser step ")
    assert "lower the learning rate" in last
    assert ended.stderr.startswith("Traceback") == bool(n_tracebacks)
    assert len(ended.stderr.splitlines()) == 1 or flags
