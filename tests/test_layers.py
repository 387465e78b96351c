"""The layers of the architecture hold, and their contracts name every module there is."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DECISION_CODE = {"bandit", "clustering", "influence", "cost", "certificate", "separation"}


def contracts() -> dict[str, dict[str, Any]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return {contract["name"]: contract for contract in settings["tool"]["importlinter"]["contracts"]}


def modules_of(package: str) -> set[str]:
    """Return the names of the modules and packages directly in a package, `__init__` left out."""
    files = {path.stem for path in (ROOT / package).glob("*.py")}
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    return (files | folders) - {"__init__"}


def test_every_contract_is_kept() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_independent_tasks_are_all_modules_of_tasks_but_caching_and_the_clock() -> None:
    listed = contracts()["stage tasks do not import each other"]["modules"]
    assert len(listed) == len(set(listed))
    assert set(listed) == {f"tasks.{name}" for name in modules_of("tasks") - {"caching", "clock"}}


def test_all_of_flows_and_tasks_but_tracking_may_not_import_mlflow() -> None:
    listed = contracts()["MLflow is imported by tasks.tracking only"]["source_modules"]
    assert set(listed) == {"flows"} | {f"tasks.{name}" for name in modules_of("tasks") - {"tracking"}}


def test_the_core_layers_name_every_module_of_the_core_once() -> None:
    contract = contracts()["core layers, top to bottom"]
    named = [name.strip() for layer in contract["layers"] for name in layer.split("|")]
    assert contract["exhaustive"] is True
    assert sorted(named) == sorted(modules_of("clusterucb_core"))


def test_decision_code_is_listed_as_free_of_models_and_databases() -> None:
    contract = contracts()["decision code runs without a model, a database or a GPU"]
    assert set(contract["source_modules"]) == {f"clusterucb_core.{name}" for name in DECISION_CODE}
    assert {"torch", "transformers", "duckdb", "polars"} <= set(contract["forbidden_modules"])


@pytest.mark.parametrize("package", ["clusterucb_core", "flows", "tasks"])
def test_no_module_carries_the_name_of_a_standard_library_module(package: str) -> None:
    """A deployment entrypoint puts its own folder first on `sys.path`, where such a file would win."""
    names = {path.stem for path in (ROOT / package).rglob("*.py")} - {"__init__", "__main__"}
    assert not names & sys.stdlib_module_names
