"""Loads a target from the files that a run names, or from those that a bundled target names.

A bundled target is one file `<name>.yaml` beside this module: adding that file is all that a new target task
needs. Its block `answer` says how the test rows are scored; `clusterucb_core.evaluation` reads that block.
"""

import difflib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field, JsonValue, ValidationError

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.errors import InvalidTarget
from clusterucb_core.frozen import Frozen
from clusterucb_core.prompts import normalised_prompt
from clusterucb_core.records import IntArray, Sample, Target, TargetRow
from clusterucb_core.targets.rows import read_rows

BUNDLED_FOLDER = Path(__file__).parent


class TargetSettings(Frozen):
    """Which target to select for."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,  # files and models of the registry bear it
        title="Name",
        description="Name of the target; it also picks the bundled target's way of scoring answers.",
    )
    validation: str | None = Field(
        default=None,
        title="Validation file",
        description="JSON or JSONL file of validation rows, relative to the configuration file.",
    )
    test: str | None = Field(
        default=None,
        title="Test file",
        description="JSON or JSONL file of test rows, relative to the configuration file; may be the same.",
    )


class BundledTarget(Frozen):
    """One file `<name>.yaml`: what is known about a target task before its rows are seen."""

    description: str
    subtask_field: str = "subtask"
    validation: str | None = None
    test: str | None = None
    answer: dict[str, JsonValue] = Field(default_factory=dict)


def available_targets(*, folder: Path = BUNDLED_FOLDER) -> list[str]:
    """Return the names of the bundled targets, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def bundled_target(name: str, *, folder: Path = BUNDLED_FOLDER) -> BundledTarget:
    """Return one bundled target.

    Raises:
        InvalidTarget: there is none of that name, or its file does not fit the model.
    """
    names = available_targets(folder=folder)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InvalidTarget(
            f"target {name!r} names no validation file and is no bundled target; "
            f"{hint}set target.validation, or use one of {', '.join(names)}"
        )
    path = folder / f"{name}.yaml"
    try:
        return BundledTarget.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise InvalidTarget(f"{path} is no bundled target: {error}; correct the file") from error


def load_target(settings: TargetSettings, base_folder: Path, *, bundled: Path = BUNDLED_FOLDER) -> Target:
    """Read the validation and test rows of a target.

    Args:
        settings: the target's name and files. A bundled target of that name gives the key of the subtask, and
            without `validation` the files too, which then lie relative to its own folder.
        base_folder: folder of the configuration file, to which the paths are relative.
        bundled: folder of the bundled targets.

    Returns:
        The target; without a test file `test` is empty.

    Raises:
        InvalidTarget: no validation file is known, a file or a row cannot be used, a file holds no row of its
            split, or a prompt stands in both splits.
    """
    validation_path, test_path, subtask_key = _sources(settings, base_folder, bundled=bundled)
    validation = read_rows(
        validation_path, "validation", subtask_key=subtask_key, default_subtask=settings.name
    )
    test: tuple[TargetRow, ...] = ()
    if test_path is not None:
        test = read_rows(test_path, "test", subtask_key=subtask_key, default_subtask=settings.name)
    _refuse_shared_rows(validation, test, name=settings.name)
    return Target(settings.name, validation, test)


def target_digest(target: Target) -> str:
    """Return a digest of the target's name and of the content and order of its rows."""
    return fingerprint(
        target.name, [_content(row) for row in target.validation], [_content(row) for row in target.test]
    )


def validation_samples(target: Target) -> list[Sample]:
    """Return the validation rows as samples, in the target's order."""
    return _samples(target.name, target.validation)


def test_samples(target: Target) -> list[Sample]:
    """Return the test rows as samples, in the target's order."""
    return _samples(target.name, target.test)


def subtask_index(target: Target) -> tuple[list[str], IntArray]:
    """Return the subtasks that the validation rows belong to.

    Returns:
        The names of the subtasks, sorted, and for each validation row the index [v] of its subtask.
    """
    names = sorted({row.subtask for row in target.validation})
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[row.subtask] for row in target.validation], dtype=np.int64)


def _content(row: TargetRow) -> dict[str, Any]:
    content = asdict(row)
    if row.code is None:
        del content["code"]  # what was computed for a target before rows had tests keeps its key
    return content


def _sources(settings: TargetSettings, base_folder: Path, *, bundled: Path) -> tuple[Path, Path | None, str]:
    if settings.validation is not None:
        test = None if settings.test is None else base_folder / settings.test
        return base_folder / settings.validation, test, _subtask_key(settings.name, bundled)
    defaults = bundled_target(settings.name, folder=bundled)
    if defaults.validation is None:
        raise InvalidTarget(
            f"the bundled target {settings.name!r} ships no rows; set target.validation to a file of its rows"
        )
    if settings.test is not None:
        test = base_folder / settings.test
    else:
        test = None if defaults.test is None else bundled / defaults.test
    return bundled / defaults.validation, test, defaults.subtask_field


def _subtask_key(name: str, bundled: Path) -> str:
    if name in available_targets(folder=bundled):
        return bundled_target(name, folder=bundled).subtask_field
    return "subtask"


def _refuse_shared_rows(validation: tuple[TargetRow, ...], test: tuple[TargetRow, ...], *, name: str) -> None:
    prompts = {(normalised_prompt(row.messages), row.choices): i for i, row in enumerate(validation, start=1)}
    for number, row in enumerate(test, start=1):
        prompt = normalised_prompt(row.messages)
        if (prompt, row.choices) in prompts:
            raise InvalidTarget(
                f"target {name!r}: test row {number} has the prompt of validation row "
                f"{prompts[prompt, row.choices]} ({prompt[:80]!r}); keep it in one split only: "
                "one file serves as both where each of its rows has a key `split`"
            )


def _samples(name: str, rows: tuple[TargetRow, ...]) -> list[Sample]:
    return [Sample(row.row_id, f"target:{name}", row.messages) for row in rows]
