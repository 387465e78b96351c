"""What `init` needs to know: from flags, from answers at a terminal, from what lies in the working folder."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flows.commands.completion import MODES
from flows.commands.failures import Refused
from flows.rendering import counted, tell

if TYPE_CHECKING:
    from clusterucb_core.proposals import Proposals
    from clusterucb_core.targets.rows import Split

NEEDED = {"pool": "--pool", "validation": "--validation", "model": "--model"}


@dataclass(frozen=True)
class Answers:
    """What is known of a configuration to be written; None or empty where nothing was said."""

    pool: tuple[str, ...] = ()
    target_name: str | None = None
    validation: str | None = None
    test: str | None = None
    model: str | None = None
    mode: str | None = None
    policy: str | None = None
    budget_fraction: float | None = None
    top_fraction: float | None = None


def can_ask() -> bool:
    """Tell whether there is a terminal to ask at and to answer from."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(given: Answers, found: "Proposals") -> Answers:
    """Ask for what is not given; what was found in the working folder is proposed.

    Raises:
        typer.Abort: the user ended the questions.
    """
    from clusterucb_core.proposals import target_name
    from clusterucb_core.selection import SelectionSettings

    usual = {name: field.default for name, field in SelectionSettings.model_fields.items()}
    tell("An empty answer takes what stands in brackets.")
    pool = given.pool or _asked("Pool files, several with spaces between", shlex.join(found.pool), _pool)
    validation = given.validation or _asked("File of the target's validation rows", found.validation, _rows)
    test = given.test
    if test is None:
        proposed = _proposed_test(validation, found)
        test = _asked("File of the target's test rows, - for none", proposed or "-", _test_rows)
    name = given.target_name or _asked("Name of the target", target_name(Path(validation)), str)
    return replace(
        given,
        pool=tuple(pool),
        validation=validation,
        test=test or None,
        target_name=name,
        model=given.model or _asked("Base model, a folder or a hub id", found.model, _model),
        mode=given.mode or _asked(f"Mode, {' or '.join(MODES)}", MODES[0], _mode),
        budget_fraction=given.budget_fraction
        or _asked("Share of the pool whose gradients may be computed", usual["budget_fraction"], _share),
        top_fraction=given.top_fraction
        or _asked("Share of the pool to select", usual["top_fraction"], _share),
    )


def complete(given: Answers, found: "Proposals") -> Answers:
    """Return the answers with what was found in the working folder for what is needed and not given."""
    validation = given.validation or found.validation
    test = given.test or (validation and _proposed_test(validation, found))
    return replace(
        given,
        pool=given.pool or found.pool,
        validation=validation,
        test=test,
        model=given.model or found.model,
    )


def as_flags(answers: Answers) -> list[str]:
    """Return the flags that give the same answers."""
    words = [word for pattern in answers.pool for word in ("--pool", pattern)]
    for name, value in vars(answers).items():
        if name != "pool" and value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def require_needed(answers: Answers, *, advice: str) -> None:
    """Refuse answers that no configuration can be made of.

    Args:
        answers: what is known.
        advice: what can be done besides giving the flags.

    Raises:
        Refused: something that every configuration needs is not known; the message names the flags.
    """
    missing = [flag for name, flag in NEEDED.items() if not getattr(answers, name)]
    if missing:
        raise Refused(f"init needs {', '.join(missing)}: {advice}")


def _asked(question: str, proposal: Any, convert: Callable[[str], Any]) -> Any:
    """Ask until the answer can be used."""
    default = str(proposal) if proposal else None
    return typer.prompt(question, default=default, err=True, value_proc=_or_again(convert))


def _or_again(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    from clusterucb_core.errors import ClusterUcbError

    def converted(text: str) -> Any:
        try:
            return convert(text.strip())
        except (ClusterUcbError, ValueError) as error:
            raise typer.BadParameter(str(error)) from error

    return converted


def _pool(text: str) -> list[str]:
    from clusterucb_core.pool.formats import file_shape
    from clusterucb_core.pool.sources import PoolSettings, SourceSettings, source_files

    patterns = shlex.split(text)
    for pattern in patterns:
        settings = PoolSettings(sources=(SourceSettings(path=pattern),))
        files = source_files(settings, Path.cwd())
        shapes = sorted({file_shape(file.path) or "no rows" for file in files})
        tell(f"  {pattern}: {counted(len(files), 'file')}, {', '.join(shapes)}")
    return patterns


def _rows(text: str, split: "Split" = "validation") -> str:
    from clusterucb_core.targets.rows import read_rows

    found = read_rows(Path(text), split, subtask_key="subtask", default_subtask="target")
    tell(f"  {text}: {counted(len(found), f'{split} row')}")
    return text


def _proposed_test(validation: str, found: "Proposals") -> str | None:
    return validation if _has_rows(validation, "test") else found.test


def _test_rows(text: str) -> str:
    return "" if text == "-" else _rows(text, "test")


def _has_rows(path: str, split: "Split") -> bool:
    """Tell whether the rows of a file say which split they belong to, and some are of this one."""
    from clusterucb_core.errors import InvalidTarget
    from clusterucb_core.proposals import has_split
    from clusterucb_core.targets.rows import read_rows

    try:
        return has_split(Path(path)) and bool(
            read_rows(Path(path), split, subtask_key="subtask", default_subtask="target")
        )
    except InvalidTarget:
        return False


def _model(text: str) -> str:
    from clusterucb_core.lm.loading import find_folder

    folder = find_folder(text)
    tell(f"  {text}: " + ("an id on the Hugging Face hub" if folder is None else "a folder"))
    return text


def _mode(text: str) -> str:
    from clusterucb_core.near_names import known_names

    if text not in MODES:
        raise ValueError(f"mode {text!r} is unknown; {known_names(text, MODES)}")
    return text


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError(f"{text} is no share; give a number above 0, at most 1")
    return value
