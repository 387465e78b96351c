"""One run at a time in a state folder."""

import json
import subprocess
import sys
import threading
import time

import pytest

from flows import turns
from flows.turns import LOCK, turn

HOLDER = """
import sys
from pathlib import Path
from flows.turns import turn
with turn(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(turns, "POLL_S", 0.01)


def test_a_second_run_waits_until_the_first_has_ended_and_says_for_whom(tmp_path, caplog):
    order = []

    def second():
        with turn(tmp_path):
            order.append("second")

    with turn(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.2)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
    assert "another run works in this state folder (a command, process" in caplog.text


def test_a_run_that_was_killed_leaves_no_lock_behind(tmp_path):
    line = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid
        holder.kill()
        holder.wait(30)
        began = time.monotonic()
        with turn(tmp_path):
            assert time.monotonic() - began < 5


def test_other_state_folders_do_not_wait(tmp_path):
    with turn(tmp_path / "a"), turn(tmp_path / "b"):
        assert (tmp_path / "a" / LOCK).exists()
        assert (tmp_path / "b" / LOCK).exists()
