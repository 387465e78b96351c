"""`report`: one page about a selection version."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.arguments import AsJson, version_number
from flows.commands.versions import Version, catalog_file, version_of
from flows.home import state_folder
from flows.rendering import print_json, say, size

PageFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="The page to write; selection-VERSION.html without it.",
        show_default=False,
    ),
]


def report(version: Version, out: PageFile = None, as_json: AsJson = False) -> None:
    """Write one HTML page about a selection version.

    What was selected and how good it is, what it cost, where it came from, and how the bandit behaved. The
    page needs nothing else and opens offline.
    """
    wanted = version_number(version)
    from clusterucb_core.store import open_catalog

    with open_catalog(catalog_file(), read_only=True) as con:
        number = version_of(con, wanted)
    # what draws takes seconds to import: an unknown version is refused without it
    from clusterucb_core.report import write_report
    from clusterucb_core.workspace import Workspace

    file = out or Path(f"selection-{number}.html")
    result = write_report(Workspace(home=str(state_folder())), number, file)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        say(f"report on selection version {result.version} written to {result.path} ({size(result.n_bytes)})")
