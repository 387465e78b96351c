"""Every message in the troubleshooting page is one that the code can print.

A message counts as the code's where the fixed words of a text in the source, with anything in the places of
its values, match it.
"""

import ast
import re
from functools import cache

import pytest
from doc_pages import ROOT, blocks

from clusterucb_core.config import load_config
from clusterucb_core.errors import InvalidConfig

FEWEST_FIXED_CHARACTERS = 18
# its words are too few to be told from others: it is made anew instead
UNKNOWN_KEY = "run.yaml: unknown key selection.budget_fractions; "
MESSAGES = [
    pytest.param(block.text.strip(), id=f"line {block.line}")
    for block in blocks("troubleshooting.md")
    if block.language == "text" and not block.text.startswith(UNKNOWN_KEY)
]


@cache
def templates() -> list[re.Pattern[str]]:
    """Return a pattern for each text of the source that is long enough to tell messages apart."""
    found: list[re.Pattern[str]] = []
    for package in ("clusterucb_core", "flows", "tasks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                parts = fixed_parts(node)
                if sum(len(part.strip()) for part in parts) >= FEWEST_FIXED_CHARACTERS:
                    found.append(re.compile(".+?".join(re.escape(part) for part in parts), re.DOTALL))
    return found


def fixed_parts(node: ast.AST) -> list[str]:
    """Return the words between the values of a text; of a text without values, or with %-values, too."""
    if isinstance(node, ast.JoinedStr):
        parts = [""]
        for value in node.values:
            if isinstance(value, ast.Constant):
                parts[-1] += str(value.value)
            else:
                parts.append("")
        return parts
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.split(r"%(?:\.\d)?[sdgfr]", node.value)
    return []


def explained(message: str) -> float:
    """Return the largest share of a message that a text of the code accounts for."""
    spans = [match.span() for pattern in templates() if (match := pattern.search(message))]
    covered = set[int]().union(*(range(*span) for span in spans))
    return len(covered) / len(message)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_code(message):
    assert explained(message) > 0.6, message


def test_the_message_about_an_unknown_key_is_what_one_gets(tmp_path):
    sections = ["pool: {sources: [{path: a}]}", "target: {name: a}", "model: {base: a}"]
    (tmp_path / "run.yaml").write_text("\n".join([*sections, "selection: {budget_fractions: 1}"]), "utf-8")
    with pytest.raises(InvalidConfig) as caught:
        load_config(tmp_path / "run.yaml")
    (shown,) = [
        block.text.strip() for block in blocks("troubleshooting.md") if block.text.startswith(UNKNOWN_KEY)
    ]
    assert str(caught.value).startswith(f"{tmp_path}/{shown}")


def test_a_message_that_nothing_prints_is_found_out():
    assert explained("the flux capacitor of cluster 3 is discharged; wait for lightning") == 0.0


def test_there_are_many_messages_and_each_once():
    texts = [param.values[0] for param in MESSAGES]
    assert len(texts) > 30
    assert len(set(texts)) == len(texts)
