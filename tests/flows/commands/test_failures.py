"""How a command that fails ends, seen from outside."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_run_that_fails_says_why_on_one_line_and_nothing_else(home, config_file):
    line = [sys.executable, "-m", "flows", "run", str(config_file), "--set", "warmup.learning_rate=1e30"]
    ended = subprocess.run(line, capture_output=True, text=True, check=False, timeout=580)
    assert ended.returncode == 1
    assert ended.stdout == ""
    (said,) = ended.stderr.splitlines()
    assert said.startswith("error: the loss at optimiser step ")
    assert "lower the learning rate" in said
