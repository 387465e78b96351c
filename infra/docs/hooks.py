"""Hooks of MkDocs: generated parts go into pages, formulas become MathML, no page loads from elsewhere.

A page asks for a part by a comment of its own line, `<!-- generated: NAME -->`. Reads `benchmarks/results/`.
"""

import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from site_parts.commands import commands_reference
from site_parts.configuration import configuration_reference
from site_parts.figures import (
    certificates_table,
    policies_table,
    projections_table,
    reselection_table,
    scale_table,
    side_information_table,
    speed_table,
)
from site_parts.formats import formats_table
from site_parts.formulas import with_mathml
from site_parts.outside import loaded_from_elsewhere
from site_parts.tables import column_tables

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
REQUEST = re.compile(r"^<!-- generated: ([a-z_.]+) -->$", re.MULTILINE)

PARTS: dict[str, Callable[[], str]] = {
    "configuration": configuration_reference,
    "commands": commands_reference,
    "formats": formats_table,
    "figures.policies": lambda: policies_table(RESULTS),
    "figures.side_information": lambda: side_information_table(RESULTS),
    "figures.certificates": lambda: certificates_table(RESULTS),
    "figures.projections": lambda: projections_table(RESULTS),
    "figures.speed": lambda: speed_table(RESULTS),
    "figures.reselection": lambda: reselection_table(RESULTS),
    "figures.scale": lambda: scale_table(RESULTS),
}


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put every generated part in the place of its comment."""
    return REQUEST.sub(lambda found: part(found[1], page.file.src_uri), markdown)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace formulas by MathML, which browsers draw themselves."""
    page_with_formulas = with_mathml(html)
    if 'class="arithmatex"' in page_with_formulas:
        raise PluginError(f"{page.file.src_uri} has a formula that did not become MathML")
    return page_with_formulas


def on_post_build(*, config: MkDocsConfig) -> None:
    """Fail where a page of the finished site loads a script, a style, a font or a picture from elsewhere."""
    found = loaded_from_elsewhere(Path(config.site_dir))
    if found:
        raise PluginError("the site must open without a network, but: " + "; ".join(found))


def part(name: str, place: str) -> str:
    """Return a generated part by its name.

    Args:
        name: what the comment asks for; `tables.NAME` is the columns of a table of the catalog.
        place: the page, for the message.

    Raises:
        PluginError: nothing of this name is generated.
    """
    if name in PARTS:
        return PARTS[name]()
    family, _, table = name.partition(".")
    columns = column_tables() if family == "tables" else {}
    if table not in columns:
        known = ", ".join([*PARTS, *(f"tables.{known}" for known in columns)])
        raise PluginError(f"{place} asks for the generated part {name!r}, which is unknown; known: {known}")
    return columns[table]
