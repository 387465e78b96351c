"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from clusterucb_core.near_names import did_you_mean
from flows.commands.completion import configuration_files

LATEST = "latest"

ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="Configuration file (YAML).",
        show_default=False,
        autocompletion=configuration_files,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Replace one value of the configuration; may be repeated."
    ),
]
RunnerName = Annotated[
    str | None,
    typer.Option("--runner", help="What runs the shard tasks: threads, processes, ray.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON value.")]


def version_number(text: str) -> int | None:
    """Return a selection version; None stands for the latest.

    Raises:
        typer.BadParameter: the text is neither a number nor `latest`.
    """
    if text == LATEST:
        return None
    if not (text.isascii() and text.isdigit()):
        advice = did_you_mean(text, [LATEST]) or "give a number that `clusterucb list` shows, or latest"
        raise typer.BadParameter(f"VERSION is {text!r}; {advice}")
    return int(text)
