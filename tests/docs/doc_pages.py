"""The pages of `docs/` as tests read them: fenced blocks, and the commands in them with their output."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s{2,}#.*$")


@dataclass(frozen=True)
class Block:
    """One fenced block; `title` is the file that it shows."""

    page: str
    line: int
    language: str
    title: str | None
    text: str


@dataclass(frozen=True)
class Command:
    """One command, and the lines of output that the page shows below it."""

    page: str
    line: int
    text: str
    shown: tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags only MkDocs knows."""


@cache
def pages() -> list[str]:
    """Return the pages in the order of the navigation."""
    settings = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), _Loader)

    def flat(item) -> list[str]:
        if isinstance(item, str):
            return [item]
        return [name for part in (item.values() if isinstance(item, dict) else item) for name in flat(part)]

    return flat(settings["nav"])


def text_of(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


@cache
def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    text = text_of(page)
    found = [
        Block(page, text[: match.start()].count("\n") + 1, match[1], match[2], match[3])
        for match in FENCE.finditer(text)
    ]
    assert len(found) * 2 == len(re.findall(r"^\s*```", text, re.MULTILINE)), f"{page}: a block is not read"
    return found


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block, without their comments."""
    found: list[Command] = []
    for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
        if line.startswith("$ "):
            found.append(Command(block.page, number, COMMENT.sub("", line[2:]).strip(), ()))
        elif line.strip():
            assert found, f"{block.page}:{number}: output before a command"
            last = found.pop()
            found.append(Command(last.page, last.line, last.text, (*last.shown, line.rstrip())))
    return found


def every_block(language: str) -> list[Block]:
    return [block for page in pages() for block in blocks(page) if block.language == language]
