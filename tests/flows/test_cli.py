import logging
import subprocess
import sys

import pytest

from flows.cli import main


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["rum", "x.yaml"], "Did you mean 'run'?"),
        (["list", "--jsn"], "--json"),
        (["run"], "CONFIG"),
        (["export", "1"], "OUT"),
    ],
)
def test_bad_usage_ends_with_2_and_says_what_would_do(call, arguments, wanted):
    outcome = call(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert wanted in outcome.err
    assert outcome.out == ""


def test_without_a_command_the_help_goes_to_stderr(call):
    outcome = call()
    assert outcome.code == 2
    assert "Commands:" in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("arguments", [["--help"], ["show", "--help"], ["--version"]])
def test_help_and_version_are_results(call, arguments):
    outcome = call(*arguments)
    assert outcome.code == 0
    assert outcome.out.strip()
    assert outcome.err == ""


def test_help_lists_every_command_of_the_contract(call):
    shown = {line.split()[0] for line in call("--help").out.splitlines() if line.startswith("  ")}
    wanted = "demo check run ingest reselect compare list show diff export withdraw report doctor"
    assert set(wanted.split()) <= shown


@pytest.mark.parametrize("command", ["report"])
def test_commands_of_later_versions_end_with_2_and_name_another_way(call, command):
    outcome = call(command, "x.yaml", "--out", "y")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {command} is not available in this version; use `clusterucb ")


@pytest.mark.parametrize("arguments", [["--debug", "show"], ["show", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(call, arguments):
    assert "Traceback" in call(*arguments).err
    assert "Traceback" not in call("show").err


def test_an_unforeseen_error_ends_with_1_and_names_its_kind(call, monkeypatch):
    def fail():
        raise ZeroDivisionError("by zero\x1b[2J")

    monkeypatch.setattr("flows.commands.versions.catalog_file", fail)
    outcome = call("list")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ZeroDivisionError: by zero [2J\n--debug")


def test_an_interrupt_ends_with_130(call, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.commands.versions.catalog_file", interrupt)
    outcome = call("list")
    assert outcome.code == 130
    assert outcome.err.startswith("interrupted; ")


def test_logging_is_left_as_it_was(call):
    logger = logging.getLogger("clusterucb_core")
    before = (logger.level, logger.propagate, list(logger.handlers))
    call("list", "--verbose")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_reader_that_leaves_is_no_traceback(catalog, home):
    command = f"{sys.executable} -m flows show --json | true"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ended.stderr == ""


def test_listing_imports_neither_torch_nor_prefect(catalog):
    code = (
        "import sys; from flows.cli import main; code = main(['list']); "
        "print([m for m in ('torch', 'transformers', 'prefect', 'mlflow') if m in sys.modules], code)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[] 0"


def test_main_reads_the_arguments_of_the_process_when_given_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["clusterucb", "list"])
    monkeypatch.setattr("atexit.register", lambda _: None)
    assert main() == 0
    assert "no selections yet" in capsys.readouterr().out
