"""`list`, `show` and `diff`: the selection versions of the catalog."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import AsJson, version_number
from flows.commands.completion import version_numbers
from flows.commands.selection_tables import (
    print_comparisons,
    print_cost,
    print_evaluations,
    print_list,
    print_sources,
    print_summary,
    print_top,
    sample_rows,
)
from flows.home import state_folder
from flows.rendering import print_json, print_table, say, tell

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from clusterucb_core.store import SelectionSummary

TOP_SAMPLES = 10
ROWS_OF_A_CHANGE = 20

Version = Annotated[
    str,
    typer.Argument(
        metavar="VERSION", help="A number, or latest.", show_default=False, autocompletion=version_numbers
    ),
]


def list_versions(as_json: AsJson = False) -> None:
    """List the selection versions, the oldest first."""
    from clusterucb_core.errors import MissingArtifact
    from clusterucb_core.store import list_selections, open_catalog

    summaries: list[SelectionSummary] = []
    with suppress(MissingArtifact), open_catalog(catalog_file(), read_only=True) as con:
        summaries = list_selections(con)
    if as_json:
        print_json([summary.model_dump(mode="json", exclude={"config"}) for summary in summaries])
    elif not summaries:
        say("no selections yet; `clusterucb run CONFIG` makes one")
    else:
        print_list(summaries)


def show(
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION", help="A number; the latest without one.", autocompletion=version_numbers
        ),
    ] = "latest",
    as_json: AsJson = False,
) -> None:
    """Show one selection version.

    What it took, what it chose, and how well the model trained on it did.
    """
    from clusterucb_core.store import (
        open_catalog,
        selection_comparisons,
        selection_evaluations,
        selection_samples,
        selection_sources,
        selection_summary,
    )

    wanted = version_number(version)
    with open_catalog(catalog_file(), read_only=True) as con:
        number = version_of(con, wanted)
        summary = selection_summary(con, number)
        sources, evaluations = selection_sources(con, number), selection_evaluations(con, number)
        comparisons = selection_comparisons(con, number)
        top = selection_samples(con, number, most=TOP_SAMPLES)
    if as_json:
        tables = {
            "sources": sources.to_dicts(),
            "evaluations": evaluations.to_dicts(),
            "comparisons": comparisons.to_dicts(),
            "samples": sample_rows(top),
        }
        print_json({"selection": summary.model_dump(mode="json"), **tables})
        return
    print_summary(summary)
    print_cost(summary)
    print_sources(sources)
    print_evaluations(evaluations)
    print_comparisons(comparisons)
    print_top(top)


def diff(old: Version, new: Version, as_json: AsJson = False) -> None:
    """Compare two selection versions."""
    from clusterucb_core.store import diff_selections, open_catalog

    wanted = [version_number(old), version_number(new)]
    with open_catalog(catalog_file(), read_only=True) as con:
        a, b = (version_of(con, number) for number in wanted)
        changes = diff_selections(con, a, b)
    rows = {change: changes.filter(change=change).to_dicts() for change in ("added", "removed", "kept")}
    counts = {change: len(found) for change, found in rows.items()}
    if as_json:
        print_json({"a": a, "b": b, **counts, "samples": changes.to_dicts()})
        return
    say(
        f"from version {a} to version {b}: "
        + ", ".join(f"{number:,} {name}" for name, number in counts.items())
    )
    shown = [row for change in ("added", "removed") for row in rows[change][:ROWS_OF_A_CHANGE]]
    if shown:
        cells = [[row["change"], row["sample_id"], row["rank_a"], row["rank_b"]] for row in shown]
        print_table(["change", "sample", f"rank in {a}", f"rank in {b}"], cells, gap=True, left=2)
    if len(shown) < counts["added"] + counts["removed"]:
        tell(f"{ROWS_OF_A_CHANGE} of each change are shown; --json prints all")


def version_of(con: "DuckDBPyConnection", wanted: int | None) -> int:
    """Return the wanted version; None is the latest, the first target's where a run had several."""
    from clusterucb_core.store import latest_selections

    if wanted is not None:
        return wanted
    first, *others = latest_selections(con)
    if others:
        listed = ", ".join(f"{other.selection_version} ({other.target})" for other in others)
        tell(
            f"the latest run selected for several targets: version {first.selection_version} "
            f"({first.target}) is taken; the others are {listed}"
        )
    return first.selection_version


def catalog_file() -> Path:
    """Return the catalog of the state folder."""
    from clusterucb_core.workspace import Workspace

    return Workspace(home=str(state_folder())).catalog
