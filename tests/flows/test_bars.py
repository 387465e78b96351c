"""Progress on a terminal: bars while tasks last, log lines whole and above them, nothing left behind."""

import io
import json
import logging
import os
import re
import sys
import threading

import pytest
from rich.console import Console

from clusterucb_core.pacing import BEGUN_AND_OVER, Pace, advance, finish
from flows import bars as bars_module
from flows.bars import Bars, bars

LOG = logging.getLogger("clusterucb_core.some.stage")
ESCAPE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


def screen(written: str) -> tuple[list[str], list[str]]:
    """Return the lines that a terminal shows in the end, and every text that stood on one before."""
    lines, row, column, seen = [""], 0, 0, []
    for part in ESCAPE.finditer(written):
        text, (arguments, command) = part.group(0), part.groups()
        if command == "A":
            row = max(0, row - int(arguments or 1))
        elif command == "K":
            lines[row] = "" if arguments == "2" else lines[row][:column]
        elif text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif command is None:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
            seen.append(lines[row])
    return [line.rstrip() for line in lines], seen


@pytest.fixture
def terminal(monkeypatch):
    """Make a pseudo-terminal the stderr; returns what gives all that was written to it, and closes it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(bars_module, "REFRESHES_PER_S", 50)
    opened = []

    def attach():
        ours, theirs = os.openpty()
        stream = os.fdopen(theirs, "w", encoding="utf-8")
        monkeypatch.setattr(sys, "stderr", stream)  # in the test itself: pytest sets its own for each phase
        chunks: list[bytes] = []
        reader = threading.Thread(target=read_all, args=(ours, chunks))
        reader.start()
        opened.append((ours, stream, reader))

        def written():
            stream.close()
            reader.join()
            return b"".join(chunks).decode()

        return written

    yield attach
    for ours, stream, reader in opened:
        stream.close()
        reader.join()
        os.close(ours)


def read_all(end, chunks):
    while True:
        try:
            chunks.append(os.read(end, 65536))
        except OSError:  # the other end was closed
            return


@pytest.fixture
def large_pool(config_file):
    """The configuration with a pool that takes about a second to read."""
    rows = (json.dumps({"prompt": f"Is {i} odd?", "completion": str(i % 2)}) for i in range(20_000))
    (config_file.parent / "pool.jsonl").write_text("\n".join(rows) + "\n")
    return config_file


def test_a_stage_on_a_terminal_has_a_bar_and_leaves_its_log_lines_whole(terminal, large_pool, capsys):
    from flows.cli import main

    written = terminal()
    assert main(["ingest", str(large_pool), "--json"]) == 0
    shown, seen = screen(written())
    assert any("reading the pool, file 1 of 1" in text for text in seen)
    assert any(re.search(r"[1-9][0-9,]* rows, [0-9,]+/s", text) for text in seen)
    assert [re.sub(r"^[0-9:]{8} ", "", line) for line in shown if line] == [
        "INFO pool.jsonl: the rows are read as prompt_completion"
    ]
    assert json.loads(capsys.readouterr().out)["n_samples"] == 20_000


def test_without_a_terminal_there_is_nothing_but_the_result(call, large_pool):
    outcome = call("ingest", large_pool)
    assert outcome.err == ""
    assert "pool version 1 created" in outcome.out


@pytest.mark.parametrize("kind", ["dumb", "", "unknown"])
def test_a_terminal_without_a_cursor_gets_lines(terminal, config_file, monkeypatch, kind):
    from flows.cli import main

    monkeypatch.setenv("TERM", kind)
    written = terminal()
    assert main(["ingest", str(config_file)]) == 0
    said = written()
    assert "\x1b" not in said
    assert "INFO pool.jsonl: the rows are read as prompt_completion\r\n" in said


def test_tasks_under_way_are_rows_of_one_display_with_what_is_left(terminal):
    written = terminal()
    console = Console(stderr=True)
    shown = Bars(console)
    first, second = Pace(LOG, "training", "optimiser steps", 20), Pace(LOG, "k-means", "rows", None)
    first.began_at -= 10
    advance(first, 5)
    for pace in (first, second):
        shown.emit(record_of(pace))
    console.print(shown._rows())
    shown.close()
    _, seen = screen(written())
    assert any("training" in text and "5 of 20 optimiser steps, 0.5/s, 30 s left" in text for text in seen)
    assert any("k-means" in text and "0 rows, 0/s" in text for text in seen)


@pytest.mark.parametrize("width", [60, 72, 80, 100])
def test_on_a_narrow_terminal_the_bar_gives_way_to_what_is_left(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    shown = Bars(console)
    pace = Pace(LOG, "tokenising the pool", "samples", 2002)
    pace.began_at -= 10
    advance(pace, 1001)
    shown._paces[1] = pace
    console.print(shown._rows())
    (line,) = console.file.getvalue().splitlines()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()
    assert plain.startswith("tokenising the po")
    assert ("━" in plain) == (width > 70)
    assert plain.endswith("1,001 of 2,002 samples, 100/s, 10 s left")
    assert len(plain) <= width


def test_what_others_write_to_stderr_goes_above_the_bars(terminal):
    written = terminal()
    with bars():
        pace = Pace(LOG, "training", "optimiser steps", 20)
        sys.stderr.write("a library's words\n")
        sys.stderr.write("and more of them\n")
        advance(pace, 20)
    shown, _ = screen(written())
    assert [line for line in shown if line] == ["a library's words", "and more of them"]


def test_a_task_that_breaks_off_leaves_no_bar(terminal):
    def break_off():
        with bars():
            Pace(LOG, "training", "optimiser steps", 20)
            raise ZeroDivisionError

    written = terminal()
    with pytest.raises(ZeroDivisionError):
        break_off()
    shown, _ = screen(written())
    assert [line for line in shown if line] == []
    assert (BEGUN_AND_OVER.handlers, BEGUN_AND_OVER.propagate) == ([], True)


def test_the_display_is_there_only_while_a_task_lasts():
    shown = Bars(Console(file=io.StringIO()))
    pace, nothing = Pace(LOG, "training", "optimiser steps", 20), Pace(LOG, "scores", "samples", 0)
    shown.emit(record_of(nothing))
    assert shown._live is None
    shown.emit(record_of(pace))
    assert shown._live is not None
    finish(pace)
    shown.emit(record_of(pace))
    assert shown._live is None


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch):
    tried = []

    class Gone(io.StringIO):
        def write(self, text):
            tried.append(text)
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    shown = Bars(Console(file=Gone(), force_terminal=True))
    pace = Pace(LOG, "training", "optimiser steps", 20)
    shown.emit(record_of(pace))
    assert tried, "the display did write"


def record_of(pace):
    return logging.makeLogRecord({"pace": pace})
