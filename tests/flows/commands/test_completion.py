"""What Tab offers, in each shell, and how little is imported for it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from flows.commands import completion

ROOT = Path(__file__).parents[3]
# pydantic is not among them: typer reads the options with it
HEAVY = ("torch", "transformers", "prefect", "mlflow", "polars", "numpy", "rich", "yaml")


def test_versions_come_newest_first_with_what_each_is_of(catalog):
    assert completion.version_numbers("") == [
        ("2", "sums, ucb_beta"), ("1", "sums, ucb_beta"), ("latest", "the newest one"),
    ]  # fmt: skip
    assert completion.version_numbers("la") == [("latest", "the newest one")]
    assert completion.version_numbers("1") == [("1", "sums, ucb_beta")]


def test_without_a_catalog_there_are_no_versions(home):
    assert completion.version_numbers("") == []
    assert not home.exists()


def test_while_a_run_writes_nobody_waits_for_versions(catalog):
    code = (
        "import sys, duckdb; con = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(catalog)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"held\n"
        assert completion.version_numbers("") == []
        writer.communicate()


def test_configuration_files_are_looked_for_where_the_path_leads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    for name in ("run.yaml", "run.yml", "data.jsonl", "more/a.yaml"):
        (tmp_path / name).write_text("")
    assert completion.configuration_files("r") == ["run.yaml", "run.yml"]
    assert completion.configuration_files("more/") == ["more/a.yaml"]
    assert completion.configuration_files(f"{tmp_path}/more/a") == [f"{tmp_path}/more/a.yaml"]
    assert completion.configuration_files("absent/") == []
    assert completion.configuration_files("more") == []


def test_names_that_are_completed_are_those_that_there_are():
    from clusterucb_core.config import RunConfig
    from clusterucb_core.export import ExportFormat

    assert completion.export_formats() == list(get_args(ExportFormat))
    assert completion.modes() == list(get_args(RunConfig.model_fields["mode"].annotation))


@pytest.fixture
def command(tmp_path):
    """A folder that holds `clusterucb`, in front of the search path, and a home folder of the test's own."""
    program = tmp_path / "bin" / "clusterucb"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flows "$@"\n')
    program.chmod(0o755)
    return os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }


def offered(shell, words, environment):
    """Return what completes the last of the words, as the script of a shell asks for it."""
    asked = {"_CLUSTERUCB_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        asked |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        asked |= {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(["clusterucb"], env=environment | asked, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_offered_versions_and_formats(shell, command, catalog):
    assert "latest" in offered(shell, ["clusterucb", "show", ""], command)
    assert "parquet" in offered(shell, ["clusterucb", "export", "2", "out", "--format", "p"], command)


def test_bash_completes_with_the_script_that_is_installed(command, catalog, tmp_path):
    bash = shutil.which("bash")
    install = "clusterucb --install-completion; true"
    done = subprocess.run([bash, "-c", install], env=command, capture_output=True, text=True, check=True)
    assert "bash completion installed" in done.stdout, done.stderr
    script = tmp_path / ".bash_completions" / "clusterucb.sh"
    assert str(script) in (tmp_path / ".bashrc").read_text()
    ask = f"source {script}; COMP_WORDS=(clusterucb diff 1 ''); COMP_CWORD=3; "
    ask += '_clusterucb_completion clusterucb; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run([bash, "-c", ask], env=command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1", "latest"]


@pytest.mark.parametrize(
    ("shell", "wanted"),
    [
        ("bash", "complete -o default"),
        ("zsh", "#compdef clusterucb"),
        ("fish", "complete --command clusterucb"),
    ],
)
def test_the_script_of_the_shell_is_shown(shell, wanted, call, monkeypatch, capsys):
    from flows.cli import main

    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    with pytest.raises(SystemExit) as caught:
        main(["--show-completion"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert wanted in shown
    assert "_CLUSTERUCB_COMPLETE=complete_" + shell in shown


@pytest.mark.parametrize(
    "words", [["clusterucb", "wi"], ["clusterucb", "show", ""], ["clusterucb", "run", ""]]
)
def test_a_key_press_imports_nothing_that_takes_long(words, catalog):
    code = (
        "import json, sys, atexit; from flows.cli import main\n"
        f"atexit.register(lambda: print(json.dumps([m for m in {HEAVY!r} if m in sys.modules])))\n"
        "main()"
    )
    asked = {
        "_CLUSTERUCB_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []
