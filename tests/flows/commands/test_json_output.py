"""`--json`: stdout of every command that prints a result is one JSON value, whatever libraries write."""

import json
import logging
import os
import sys
from types import SimpleNamespace

import polars as pl
import pytest
from typer.main import get_command

from clusterucb_core.comparison import CHART, REPLAYS, TABLE, ComparisonResult
from clusterucb_core.garbage import Removed
from clusterucb_core.reselection import ReselectionResult
from clusterucb_core.stages.summary import Work
from flows.cli import command_line, main

WORK = Work(gradient_evaluations=0, trainings=0)
# What each command is called with besides --json, and a key of its result; a list has none.
COMMANDS = {
    "check": (["CONFIG"], "n_samples"),
    "run": (["CONFIG"], "selection_version"),
    "ingest": (["CONFIG"], "pool_version"),
    "reselect": (["CONFIG"], "changed"),
    "compare": (["CONFIG"], "replays"),
    "list": ([], None),
    "show": (["2"], "selection"),
    "diff": (["1", "2"], "added"),
    "export": (["2", "OUT"], "path"),
    "report": (["2", "--out", "OUT"], "n_bytes"),
    "withdraw": (["s01", "--reason", "a test"], "withdrawn"),
    "maintenance": ([], "removed"),
    "restore": (["--yes"], "replaced"),
    "doctor": ([], "findings"),
    "demo": ([], "comparison"),
    "init": (["OUT", "--pool", "POOL", "--validation", "TARGET", "--model", "MODEL"], "config"),
}


def noise(result):
    """Return a function that gives a result after writing to stdout in every way that a library may."""

    def run(*_, **__):
        sys.stdout.write("a library's words\n")
        os.write(1, b"a child's words\n")
        logging.getLogger("clusterucb_core.test").warning("a warning")
        return result

    return run


@pytest.fixture
def invoke(capfd):
    """Run `clusterucb`; return its exit code and what came to the two files themselves."""

    def run(*arguments):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def stand_ins(monkeypatch, config_file, tmp_path):
    """Put noisy functions in the place of flows, which take long."""
    ran = SimpleNamespace(selection_version=2, subjects=(), model_dump=lambda mode: {"selection_version": 2})
    removed = Removed(kept_runs=(), artifacts={}, bytes={}, dry_run=False)
    kept = SimpleNamespace(model_dump=lambda mode: {"removed": removed.model_dump(mode=mode)})
    flows = {
        "pipeline": {"run_pipeline": noise(ran)},
        "comparison": {"run_comparison": noise(compared(tmp_path / "kept"))},
        "reselection": {"run_reselection": noise(reselected())},
        "maintenance": {"run_maintenance": noise(kept)},
    }
    for module, functions in flows.items():
        monkeypatch.setitem(sys.modules, f"flows.{module}", SimpleNamespace(**functions))
    monkeypatch.setattr("clusterucb_core.trails.followed_trail", lambda plan: None)
    # a folder that may hold no backup of the catalog
    chosen = SimpleNamespace(model_dump=lambda mode: {"replaced": None})
    monkeypatch.setattr("clusterucb_core.restoration.choose_backup", lambda workspace, named: None)
    monkeypatch.setattr("clusterucb_core.restoration.restore_catalog", noise(chosen))
    monkeypatch.setattr("clusterucb_core.demo.write_demo", noise(SimpleNamespace(config=config_file)))


def compared(folder):
    folder.mkdir()
    pl.DataFrame({"policy": ["ucb1"]}).write_csv(folder / REPLAYS)
    (folder / TABLE).write_text("policy\n")
    (folder / CHART).write_bytes(b"\x89PNG")
    return ComparisonResult(
        run_id="run",
        targets=("adding",),
        mode="static",
        n_samples=200,
        periods=(1,),
        seeds=1,
        audit_fraction=0.0,
        settings=(),
        folder=str(folder),
        work=WORK,
        mlflow_run_id=None,
        seconds=1.0,
    )


def reselected():
    return ReselectionResult(
        run_id="new",
        followed_run_id="old",
        pool_version=2,
        changed=False,
        new_warmup=False,
        targets=(),
        work=WORK,
        mlflow_run_id=None,
        seconds=1.0,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_stdout_is_one_json_value(invoke, catalog, config_file, model_folder, stand_ins, command):
    folder = config_file.parent
    places = {
        "CONFIG": config_file,
        "OUT": folder / "out.file",
        "POOL": folder / "pool.jsonl",
        "TARGET": folder / "target.jsonl",
        "MODEL": model_folder,
    }
    arguments, key = COMMANDS[command]
    code, out, err = invoke(command, *(places.get(word, word) for word in arguments), "--json")
    assert code == 0, err
    value = json.loads(out)  # a second value, or any other word, would not be JSON
    assert isinstance(value, list) if key is None else key in value
    assert out.startswith(("{", "["))
    assert out.endswith(("}\n", "]\n"))


@pytest.mark.parametrize("command", ["run", "reselect", "compare", "demo"])
def test_what_libraries_write_meanwhile_is_a_message(invoke, catalog, config_file, stand_ins, command):
    arguments = [] if command == "demo" else [config_file]
    _, _, err = invoke(command, *arguments, "--json")
    assert {"a library's words", "a child's words"} <= set(err.splitlines())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["show", "7"], 1), (["check", "absent.yaml"], 2), (["init", "x.yaml"], 2), (["diff", "1", "b"], 2)],
)
def test_an_error_leaves_stdout_empty(invoke, catalog, arguments, code):
    found, out, err = invoke(*arguments, "--json")
    assert (found, out) == (code, "")
    assert err.startswith("error: ")


def test_every_command_is_tried():
    commands = get_command(command_line()).commands
    assert set(commands) == set(COMMANDS)
    for name in COMMANDS:
        assert "--json" in [option for parameter in commands[name].params for option in parameter.opts], name
