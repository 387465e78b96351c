import logging
import subprocess
import sys

import pytest
from typer.main import get_command

from flows.cli import command_line, main


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
    assert "Begin:\n  demo " in outcome.err
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


@pytest.mark.parametrize(
    ("arguments", "also"),
    [
        (["--help"], ["pydantic", "rich", "polars", "duckdb", "numpy"]),
        (["list"], []),
        (["show"], []),
        (["diff", "1", "2"], []),
        (["export", "1", "out.jsonl"], []),
    ],
)
def test_what_only_reads_the_catalog_imports_nothing_that_takes_long(
    catalog, arguments, also, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    heavy = ["torch", "transformers", "peft", "sklearn", "lm_eval", "prefect", "mlflow", *also]
    code = (
        f"import sys; from flows.cli import main; code = main({arguments!r}); "
        f"print([m for m in {heavy!r} if m in sys.modules], code)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[] 0"


def test_the_help_lists_every_command_once_under_a_heading_with_a_whole_sentence(call):
    lines = call("--help").out.partition("Begin:\n")[2].splitlines()
    rows = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert sorted(name for name, _ in rows) == sorted(get_command(command_line()).commands)
    for name, text in rows:
        assert text.endswith("."), name
        assert not text.endswith("..."), name
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert headings == ["Select:", "Look at selections, and hand them on:", "Keep house:"]


def test_every_command_and_every_option_says_what_it_is():
    group = get_command(command_line())
    for command in [group, *group.commands.values()]:
        assert command.help.split("\n")[0].endswith("."), command.name
        for parameter in command.params:
            assert parameter.help, (command.name, parameter.name)
            assert parameter.help.endswith("."), (command.name, parameter.name)


def test_main_reads_the_arguments_of_the_process_when_given_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["clusterucb", "list"])
    monkeypatch.setattr("atexit.register", lambda _: None)
    assert main() == 0
    assert "no selections yet" in capsys.readouterr().out
