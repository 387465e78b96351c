"""`export`: the samples of a selection version, for trainers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from flows.commands.arguments import AsJson, version_number
from flows.commands.completion import export_formats
from flows.commands.versions import Version, catalog_file, version_of
from flows.rendering import print_json, say

if TYPE_CHECKING:
    from clusterucb_core.export import ExportOptions, ExportResult

OutPath = Annotated[
    Path, typer.Argument(metavar="OUT", help="The file to write; a folder with datasets.", show_default=False)
]
Format = Annotated[
    str,
    typer.Option(
        "--format", help="jsonl, parquet, alpaca, sharegpt or datasets.", autocompletion=export_formats
    ),
]
Order = Annotated[
    str, typer.Option("--order", help="rank, random (by --seed), or source (by rank within one).")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the random order.")]
Weights = Annotated[
    bool, typer.Option("--weights", help="Add a column weight: influence, not below 0, over its mean.")
]
Provenance = Annotated[
    bool,
    typer.Option(
        "--provenance", help="Add columns that tell the sample, its source, rank, influence and versions."
    ),
]
Trainers = Annotated[
    list[str] | None,
    typer.Option(
        "--for",
        metavar="TRAINER",
        help="Describe the export to llama-factory (dataset_info.json) or axolotl (YAML); may be repeated.",
    ),
]
Target = Annotated[
    str | None, typer.Option("--target", metavar="NAME", help="The latest version of this target.")
]


def export(
    version: Version,
    out: OutPath,
    file_format: Format = "jsonl",
    order: Order = "rank",
    seed: Seed = 0,
    weights: Weights = False,
    provenance: Provenance = False,
    trainers: Trainers = None,
    target: Target = None,
    as_json: AsJson = False,
) -> None:
    """Write the selected samples to a file or folder.

    In rank order, for any trainer; with --format datasets a folder that `datasets` and the hub read, with a
    card.
    """
    from typing import cast

    from clusterucb_core.export import ExportFormat, export_selection

    wanted = version_number(version)
    options = _options(
        order=order, seed=seed, weights=weights, provenance=provenance, trainers=tuple(trainers or ())
    )
    number = _version(wanted, target)
    # export_selection refuses a format that it does not know, with the known ones
    name = cast("ExportFormat", file_format)
    result = export_selection(catalog_file(), number, out, format=name, options=options)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        _print_result(result)


def _options(**chosen: Any) -> "ExportOptions":
    from clusterucb_core.export import ExportOptions, Order, Trainer

    for option, values, known in (
        ("--order", (chosen["order"],), get_args(Order)),
        ("--for", chosen["trainers"], get_args(Trainer)),
    ):
        for value in values:
            if value not in known:
                raise typer.BadParameter(f"{option} {value!r} is unknown; known are {', '.join(known)}")
    return ExportOptions(**chosen)


def _version(wanted: int | None, target: str | None) -> int:
    from clusterucb_core.store import latest_selection, open_catalog, selection_summary

    with open_catalog(catalog_file(), read_only=True) as con:
        if target is None:
            return version_of(con, wanted)
        found = latest_selection(con, target) if wanted is None else selection_summary(con, wanted)
    if found.target != target:
        raise typer.BadParameter(
            f"version {wanted} was selected for {found.target!r}, not for --target {target!r}; leave one away"
        )
    return found.selection_version


def _print_result(result: "ExportResult") -> None:
    say(
        f"{result.n:,} samples of selection version {result.version} written to {result.path} "
        f"({result.format})"
    )
    for path in result.files:
        say(f"beside them      {path}")
