"""`init`: a configuration file with comments, from flags, answers and what lies in the working folder.

Writes that one file, after the checks that `check` makes.
"""

import os
import shlex
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.arguments import AsJson, Overrides
from flows.commands.completion import configuration_files, modes
from flows.commands.failures import Refused, before_start
from flows.commands.questions import Answers, as_flags, ask, can_ask, complete, require_needed
from flows.commands.running import configure, estimated
from flows.rendering import count, counted, only_messages, print_json, print_table, say, tell

if TYPE_CHECKING:
    from clusterucb_core.config import RunConfig
    from clusterucb_core.estimate import Estimate

ORIGIN = "Written by `clusterucb init`."

OutFile = Annotated[
    Path, typer.Argument(metavar="OUT", help="The file to write.", autocompletion=configuration_files)
]
Pool = Annotated[
    list[str] | None,
    typer.Option(
        "--pool",
        metavar="GLOB",
        help="Pool file, or a quoted pattern such as 'data/*.jsonl.gz'; may be repeated.",
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target-name", metavar="NAME", help="Name of the target; that of its file without one."),
]
Validation = Annotated[
    str | None, typer.Option("--validation", metavar="FILE", help="File of the target's validation rows.")
]
Test = Annotated[
    str | None,
    typer.Option("--test", metavar="FILE", help="File of the target's test rows; may be the same file."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Base model: a folder, or an id on the Hugging Face hub."),
]
Mode = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="MODE",
        help="dynamic selects again before each epoch, static once.",
        autocompletion=modes,
    ),
]
Policy = Annotated[
    str | None,
    typer.Option("--policy", metavar="POLICY", help="How samples are drawn, such as linucb."),
]
BudgetFraction = Annotated[
    float | None,
    typer.Option("--budget-fraction", help="Share of the pool whose gradients a selection may compute."),
]
TopFraction = Annotated[
    float | None, typer.Option("--top-fraction", help="Share of the pool that is selected.")
]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", help="Ask nothing: take what the questions propose, and replace a file that is there."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def init(
    out: OutFile = Path("run.yaml"),
    pool: Pool = None,
    target_name: TargetName = None,
    validation: Validation = None,
    test: Test = None,
    model: Model = None,
    mode: Mode = None,
    policy: Policy = None,
    budget_fraction: BudgetFraction = None,
    top_fraction: TopFraction = None,
    overrides: Overrides = None,
    yes: Yes = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a configuration file with comments.

    At a terminal it asks for what no flag gives, and proposes what lies in the working folder. The file holds
    every setting with its description and its default, and is checked before it is written. Paths of flags
    and answers start at the working folder, those of --set, as in the file, at the file's folder.
    """
    _require_place(out, may_replace=yes or force)
    given = Answers(
        pool=tuple(pool or ()),
        target_name=target_name,
        validation=validation,
        test=test,
        model=model,
        mode=mode,
        policy=policy,
        budget_fraction=budget_fraction,
        top_fraction=top_fraction,
    )
    configure()
    with only_messages():
        answers = _answers(given, yes=yes)
        try:
            with before_start():
                text, config, estimate = _checked_text(answers, out, overrides or [])
        except Refused:
            if answers != given:  # what was typed need not be typed again
                tell(f"as flags: {shlex.join(['clusterucb', 'init', str(out), *as_flags(answers)])}")
            raise
        out.write_text(text, encoding="utf-8")
    result = _summary(out, config, estimate)
    if as_json:
        print_json(result)
        return
    _print_summary(result)


def _require_place(out: Path, *, may_replace: bool) -> None:
    if out.is_dir():
        raise Refused(f"{out} is a folder; name the file to write, such as {out / 'run.yaml'}")
    if not out.parent.is_dir():
        raise Refused(f"{out.parent} is no folder; make it, or name a file elsewhere")
    if out.exists() and not may_replace:
        raise Refused(f"{out} exists; name another file, or give --force to replace it")


def _answers(given: Answers, *, yes: bool) -> Answers:
    from clusterucb_core.proposals import find_proposals, target_name

    if not yes and not can_ask():
        require_needed(
            given, advice="there is no terminal to ask at; give them, or --yes to take what this folder holds"
        )
        answers = given
    else:
        found = find_proposals(Path.cwd())
        answers = complete(given, found) if yes else ask(given, found)
        require_needed(answers, advice="nothing in this folder looks like them; give the flags")
    if answers.target_name or answers.validation is None:
        return answers
    return replace(answers, target_name=target_name(Path(answers.validation)))


def _checked_text(answers: Answers, out: Path, overrides: list[str]) -> "tuple[str, RunConfig, Estimate]":
    """Return the text of the file, and what it comes to.

    Raises:
        ClusterUcbError: the configuration cannot be run.
    """
    import yaml

    from clusterucb_core.config import config_of, set_value
    from clusterucb_core.config_file import commented_config

    tree = _tree(answers, out)
    for override in overrides:
        set_value(tree, override)
    # before it is written: a setting that nobody knows has no place in the file
    config, _ = config_of(deepcopy(tree), out, variables=os.environ)
    _limit_length(tree, config)
    text = commented_config(tree, origin=ORIGIN)
    config, execution = config_of(yaml.safe_load(text), out, variables=os.environ)
    return text, config, estimated(config, execution)


def _tree(answers: Answers, out: Path) -> dict[str, Any]:
    folder = out.resolve().parent
    target = {"name": answers.target_name, "validation": answers.validation, "test": answers.test}
    selection = {
        "policy": answers.policy,
        "budget_fraction": answers.budget_fraction,
        "top_fraction": answers.top_fraction,
    }
    model = answers.model or ""
    tree: dict[str, Any] = {
        "pool": {"sources": [{"path": _in_file(pattern, folder)} for pattern in answers.pool]},
        "target": {
            key: value if key == "name" else _in_file(value, folder) for key, value in target.items() if value
        },
        "model": {"base": _in_file(model, folder) if Path(model).is_dir() or "$" in model else model},
        "mode": answers.mode,
        "selection": {key: value for key, value in selection.items() if value is not None},
    }
    return {key: value for key, value in tree.items() if value}


def _in_file(text: str, folder: Path) -> str:
    """Return a path or pattern that starts at the working folder as it stands in a file of another folder."""
    if "$" in text and not Path(text).exists():
        return text  # a variable
    shown = text if Path(text).is_absolute() else os.path.relpath(text, folder)
    return shown.replace("$", "$$")


def _limit_length(tree: dict[str, Any], config: "RunConfig") -> None:
    """Set the limit of tokens to what the model reads, where nobody has set it and the default is above."""
    from clusterucb_core.lm.loading import position_limit

    limit = position_limit(config.model)
    if limit is not None and limit < config.model.max_length and "max_length" not in tree["model"]:
        tree["model"]["max_length"] = limit
        tell(f"model.max_length is set to {count(limit)}, the most tokens that the model reads")


def _summary(out: Path, config: "RunConfig", estimate: "Estimate") -> dict[str, Any]:
    from clusterucb_core.pool.formats import file_shape
    from clusterucb_core.pool.sources import source_files

    shapes: dict[str, set[str]] = {}
    for file in source_files(config.pool, Path.cwd()):
        shapes.setdefault(file.name, set()).add(file_shape(file.path, file.format) or "no rows")
    sources = [
        {
            "source": source.source,
            "shapes": sorted(shapes[source.source]),
            "rows_read": source.rows_read,
            "kept": source.kept,
            "duplicates": source.duplicates,
            "quarantined": sum(source.quarantined.values()),
        }
        for source in estimate.pool.sources
    ]
    wanted = ("n_pool", "n_validation", "n_test", "n_selected", "budget_samples")
    return {
        "config": str(out),
        "sources": sources,
        "targets": [target.name for target in config.all_targets],
        **estimate.model_dump(include=set(wanted)),
        "warnings": list(estimate.warnings),
        "next": f"clusterucb check {shlex.quote(str(out))}",
    }


def _print_summary(result: dict[str, Any]) -> None:
    rows = [
        [
            source["source"],
            ", ".join(source["shapes"]),
            *(count(source[key]) for key in ("rows_read", "kept", "duplicates", "quarantined")),
        ]
        for source in result["sources"]
    ]
    print_table(["source", "rows read as", "rows", "kept", "duplicate", "quarantined"], rows, left=2)
    validation, test = result["n_validation"], result["n_test"]
    say(
        f"\ntarget {', '.join(result['targets'])}: {counted(validation, 'validation row')}, "
        f"{counted(test, 'test row')}"
    )
    say(
        f"of {counted(result['n_pool'], 'sample')} {count(result['n_selected'])} are selected; one selection "
        f"computes {counted(result['budget_samples'], 'gradient')} at most"
    )
    for warning in result["warnings"]:
        say(f"\nwarning: {warning}")
    say(f"\nwritten to {result['config']}")
    say(f"what it takes   {result['next']}")
    say(f"to run it       {result['next'].replace(' check ', ' run ', 1)}")
