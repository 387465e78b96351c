"""What can be told of the documentation without running it: configurations, commands, links, completeness."""

import ast
import json
import re
import shlex

import pytest
import yaml
from doc_pages import COMMENT, DOCS, ROOT, Block, blocks, commands, every_block, pages, text_of
from typer.main import get_command

from clusterucb_core.config import RunConfig
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.pool.quarantine import Reason
from clusterucb_core.targets.catalog import BundledTarget
from flows.cli import GLOBAL_FLAGS, command_line

BASE = {
    "pool": {"sources": [{"path": "data/*.jsonl.gz"}]},
    "target": {"name": "mytask", "validation": "target.jsonl"},
    "model": {"base": "model"},
}
LANGUAGES = {"console", "diff", "json", "python", "sql", "text", "yaml"}


def named(block: Block) -> str:
    return f"{block.page}:{block.line}"


def test_the_navigation_has_every_page_once():
    found = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(pages()) == found


def test_blocks_have_a_language_that_is_tested():
    assert {block.language for page in pages() for block in blocks(page)} == LANGUAGES


@pytest.mark.parametrize("block", every_block("yaml"), ids=named)
def test_a_configuration_is_valid(block):
    tree = yaml.safe_load(block.text)
    if block.title and block.title.startswith("clusterucb_core/targets/"):
        assert BundledTarget.model_validate(tree).description
        return
    ExecutionSettings.model_validate(tree.pop("execution", None) or {})
    base = {name: value for name, value in BASE.items() if name != "target" or "targets" not in tree}
    # a policy or a projection that the page adds is checked where the page is run
    added = {name for other in blocks(block.page) if other.language == "diff" for name in added_kinds(other)}
    for section in ("selection", "features", "compare"):
        tree[section] = without(tree.get(section, {}), added)
    for source in tree.get("pool", {}).get("sources", ()):
        source["format"] = "auto" if source.get("format") in added else source.get("format", "auto")
    assert RunConfig.model_validate(base | tree)


def added_kinds(block: Block) -> list[str]:
    return re.findall(r'^\+ +(?:kind|name): \w+\[\w*"?(?:str)?"?\w*"?\] = "(\w+)"', block.text, re.MULTILINE)


def without(section: dict, names: set[str]) -> dict:
    lists = {
        key: [item for item in value if item not in names]
        for key, value in section.items()
        if isinstance(value, list)
    }
    return {
        key: lists.get(key, value) for key, value in section.items() if key in lists or value not in names
    }


def test_what_a_page_adds_is_found_in_its_change():
    added = [name for block in every_block("diff") for name in added_kinds(block)]
    assert added == ["riddle", "best", "folded"]


@pytest.mark.parametrize("block", every_block("json"), ids=named)
def test_rows_are_json(block):
    rows = [json.loads(line) for line in block.text.splitlines()]
    assert rows
    assert all(isinstance(row, dict) for row in rows)


@pytest.mark.parametrize("block", every_block("python"), ids=named)
def test_code_is_python(block):
    assert ast.parse(block.text).body


def clusterucb_lines() -> list[tuple[str, str]]:
    """Return every call of the command line with its page: in console blocks, and within the text."""
    found: list[tuple[str, str]] = []
    for page in pages():
        for block in blocks(page):
            if block.language == "console":
                found.extend((page, command.text) for command in commands(block))
        prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
        found.extend((page, text) for text in re.findall(r"`((?:\.venv/bin/)?clusterucb [^`]+)`", prose))
    return [(page, text) for page, text in found if re.match(r"(\.venv/bin/)?clusterucb ", text)]


@pytest.mark.parametrize(("page", "line"), clusterucb_lines(), ids=str)
def test_a_call_names_a_command_and_options_that_there_are(page, line):
    group = get_command(command_line())
    _, name, *words = shlex.split(COMMENT.sub("", line))
    assert name in group.commands or name == "COMMAND", f"{page}: {line}"
    known = {option for parameter in group.commands[name].params for option in parameter.opts}
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= known | set(GLOBAL_FLAGS), f"{page}: {line}"


def anchors(page: str) -> set[str]:
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_pages_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (DOCS / page).parent / path if path else DOCS / page
        assert file.is_file(), f"{page}: {target}"
        name = file.resolve().relative_to(DOCS.resolve()).as_posix()
        assert not anchor or anchor in anchors(name), f"{page}: {target}"


def test_files_that_the_pages_name_are_there():
    wanted = {
        (page, name)
        for page in pages()
        for name in re.findall(
            r"`((?:clusterucb_core|flows|tests|infra|benchmarks|examples)/[\w/.-]*)`", text_of(page)
        )
    }
    assert len(wanted) > 10
    missing = {(page, name) for page, name in wanted if not (ROOT / name).exists()}
    assert not missing


def test_every_reason_of_a_quarantined_row_is_explained():
    text = text_of("how-to/own-data.md")
    assert [reason for reason in Reason if f"`{reason}`" not in text] == []


def test_every_table_of_the_catalog_has_its_section():
    from site_parts.tables import column_tables

    asked = re.findall(r"<!-- generated: tables\.(\w+) -->", text_of("reference/tables.md"))
    assert sorted(asked) == sorted(column_tables())
    headings = re.findall(r"^### (\w+)$", text_of("reference/tables.md"), re.MULTILINE)
    assert headings == asked


def test_every_policy_and_aggregate_is_described():
    from clusterucb_core.influence import Aggregate
    from clusterucb_core.selection import POLICY_NAMES

    text = text_of("method/index.md")
    names = [*POLICY_NAMES, *Aggregate.__args__]
    assert [name for name in names if f"`{name}`" not in text and f"`policy: {name}`" not in text] == []
