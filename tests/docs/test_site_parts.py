"""Parts of pages that are made when the site is built: complete, and as the code and the results have it."""

import json
import re
from pathlib import Path

import pytest
from doc_pages import ROOT
from pydantic import BaseModel
from site_parts import figures
from site_parts.commands import commands_reference
from site_parts.configuration import configuration_reference
from site_parts.formats import formats_table
from site_parts.markdown import table
from site_parts.outside import loaded_from_elsewhere
from site_parts.tables import column_tables

from clusterucb_core.config import RunConfig
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.pool.formats import SHAPES
from clusterucb_core.selection import SelectionSettings

RESULTS = ROOT / "benchmarks" / "results"


def section(text: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one."""
    return re.split(r"^#+ ", text.split(f" {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def keys_of(model: type[BaseModel], place: str = "") -> list[tuple[str, str]]:
    """Return (section, key) of every key below a model, found by the fields themselves."""
    found: list[tuple[str, str]] = []
    for name, field in model.model_fields.items():
        inside = models_in(field.annotation)
        if place or not inside:
            found.append((place, name))
        for part in inside:
            found.extend(keys_of(part, f"{place}.{name}".lstrip(".")))
    return found


def models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]


def test_every_key_of_a_configuration_stands_in_its_section():
    text = configuration_reference()
    keys = [*keys_of(RunConfig), *keys_of(ExecutionSettings, "execution")]
    assert len(keys) > 60
    for place, key in keys:
        assert f"| `{key}` |" in section(text, f"`{place}`" if place else "At the top"), f"{place}.{key}"


def test_a_key_shows_its_type_bounds_default_and_meaning():
    text = section(configuration_reference(), "`selection`")
    field = SelectionSettings.model_fields["budget_fraction"]
    assert (
        f"| `budget_fraction` | number, above 0, at most 1 | `{field.default}` | {field.description} |"
        in text
    )
    assert "| `policy` | one of `ucb_beta`, `ucb1`," in text


def test_every_command_and_option_is_listed():
    from typer.main import get_command

    from flows.cli import command_line

    text = commands_reference()
    for name, command in get_command(command_line()).commands.items():
        part = section(text, name)
        assert command.help.splitlines()[0] in part
        options = [option for parameter in command.params for option in parameter.opts if option[:2] == "--"]
        assert [option for option in options if f"`{option}" not in part] == []


def test_every_row_shape_is_listed():
    text = formats_table()
    assert [shape.name for shape in SHAPES if f"| `{shape.name}` |" not in text] == []


def test_columns_are_those_of_a_catalog():
    assert "| `arm_left` | BIGINT |" in column_tables()["pulls"]


@pytest.mark.parametrize(
    "make",
    [
        figures.policies_table,
        figures.side_information_table,
        figures.certificates_table,
        figures.projections_table,
        figures.speed_table,
        figures.reselection_table,
        figures.scale_table,
    ],
    ids=lambda make: make.__name__,
)
def test_a_table_of_figures_names_its_command(make):
    assert re.search(r"^Made by `python benchmarks/\w+\.py.*`\.$", make(RESULTS), re.MULTILINE)


def test_figures_are_those_of_the_results():
    result = json.loads((RESULTS / "selection-bbh.json").read_text("utf-8"))
    (wanted,) = [
        row for row in result["policies"] if (row["policy"], row["budget_fraction"]) == ("ucb_beta", 0.2)
    ]
    (line,) = [
        row for row in figures.policies_table(RESULTS).splitlines() if row.startswith("| `ucb_beta` | 20")
    ]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[4] == f"{wanted['captured_influence']:.3f}"
    assert cells[6] == f"{wanted['flops_over_full']:.2f}"


def test_a_cell_cannot_break_its_table():
    assert table(["a"], [["x | y\nz"]]).splitlines()[-1] == "| x \\| y z |"


def test_what_a_site_loads_from_elsewhere_is_found(tmp_path: Path):
    (tmp_path / "page.html").write_text(
        '<a href="https://elsewhere.example/a">a link is no load</a><link rel="canonical" href="https://b.example">'
        '<script async src="https://c.example/d.js"></script><link rel="stylesheet" href="//e.example/f.css">'
        '<img src="own.png">',
        "utf-8",
    )
    (tmp_path / "style.css").write_text(
        "@import 'https://g.example/h.css'; a { background: url(own.png) }", "utf-8"
    )
    assert loaded_from_elsewhere(tmp_path) == [
        "page.html: https://c.example/d.js",
        "page.html: //e.example/f.css",
        "style.css: https://g.example/h.css",
    ]
