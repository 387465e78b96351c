import json
import logging
import subprocess
import sys

import pytest

from flows.rendering import cut, interval, log_to_stderr, print_json, print_table, printable, size


def test_text_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\u202ec\nd") == "a [2Jb c d"


def test_a_cell_is_shown_as_it_is_and_not_as_markup(capsys):
    print_table(["text", "n"], [["[red]x[/red] :smile:", None]])
    assert "[red]x[/red] :smile:" in capsys.readouterr().out


def test_json_holds_null_where_a_number_is_not_finite(capsys):
    print_json({"a": [float("nan"), (1, float("inf"))], "b": "é"})
    assert json.loads(capsys.readouterr().out) == {"a": [None, [1, None]], "b": "é"}


def test_a_long_cell_is_not_cut_where_stdout_is_a_file(capsys):
    print_table(["text"], [["x" * 180]])
    assert "x" * 180 in capsys.readouterr().out


def test_cut_keeps_one_line_of_the_given_length():
    assert cut("one\ntwo  three", 9) == "one tw..."
    assert cut("one\ntwo", 9) == "one two"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.0, 0.5, 1.5), "1.0000 [0.5000, 1.5000]"),
        ((1.0, None, None), "1.0000"),
        ((1.0, float("nan"), float("nan")), "1.0000"),
    ],
)
def test_an_interval_is_shown_where_there_is_one(values, text):
    assert interval(*values) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 * 2**40, "3.0 TiB")])
def test_sizes_have_a_unit(n, text):
    assert size(n) == text


def test_what_others_write_to_stdout_becomes_a_message():
    code = (
        "import os, sys; from flows.rendering import only_messages, say\n"
        "with only_messages():\n    print('noise'); os.system('echo child'); sys.stdout.flush()\n"
        "say('result')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "result\n"
    assert ended.stderr.splitlines() == ["noise", "child"]


@pytest.mark.parametrize(("verbose", "shown"), [(False, ["careful"]), (True, ["on my way", "careful"])])
def test_what_is_shown_of_the_log_takes_nothing_from_others_that_keep_it(verbose, shown, capsys, caplog):
    log = logging.getLogger("clusterucb_core.some.stage")
    with log_to_stderr(verbose=verbose):
        logging.getLogger("clusterucb_core").addHandler(caplog.handler)
        log.info("on my way")
        log.warning("careful")
        logging.getLogger("clusterucb_core").removeHandler(caplog.handler)
    assert [line.split(maxsplit=2)[2] for line in capsys.readouterr().err.splitlines()] == shown
    assert caplog.messages == ["on my way", "careful"]


def test_a_name_in_the_log_cannot_steer_the_terminal(capsys):
    with log_to_stderr(verbose=True):
        logging.getLogger("clusterucb_core.some.stage").info("%s: read", "a\x1b]0;owned\x07\u202e.jsonl")
    assert capsys.readouterr().err.endswith("INFO a ]0;owned  .jsonl: read\n")
