"""The card of an exported `datasets` folder: its YAML header, and what was selected from what and how.

The text between two marks and the keys of `_OWN` are the project's and follow the data; all else in a card is
whoever keeps the data set: title, licence, words of their own.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, cast

import yaml

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.export.options import WEIGHT, ExportOptions, added_columns
from clusterucb_core.export.sample_files import DATASETS_FILE
from clusterucb_core.store import SelectionSummary

CARD = "README.md"
BEGIN, END = "<!-- clusterucb: begin -->", "<!-- clusterucb: end -->"
_HEADER = re.compile(r"\A---\r?\n(.*?)^---[ \t]*\r?\n", re.DOTALL | re.MULTILINE)
_OURS = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
_OWN = ("size_categories", "configs")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_COLUMN_NOTES = {
    "messages": "the conversation: a list of `role` (system, user, assistant) and `content`",
    "sample_id": "hash of the conversation",
    "source": "the pool source it came from",
    "rank": "1 is the largest influence",
    "influence": "how far a step on it goes the target's way",
    "cluster": "the arm it was drawn from",
    "selection_version": "the version of the selection",
    "pool_version": "the version of the pool",
    WEIGHT: "influence, not below 0, over its mean in the selection",
}
_ORDERS = {
    "rank": "by rank, the largest influence first",
    "random": "at random",
    "source": "by source, then by rank",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Attributes:
        name: of the folder.
        summary: the selection version.
        pool_samples: samples in the pool that it was selected from.
        counts: exported samples of each source.
        options: how the samples are laid out.
    """

    name: str
    summary: SelectionSummary
    pool_samples: int
    counts: Mapping[str, int]
    options: ExportOptions


def card_text(facts: CardFacts, old: str | None) -> str:
    """Return the card of an export, with everything of an earlier one that is not the project's.

    Args:
        facts: what it tells.
        old: the card that is there, None where there is none.

    Raises:
        InvalidConfig: the header of the old card is no YAML mapping, or its marks are gone.
    """
    own = _header(facts)
    part = f"{BEGIN}\n{_body(facts)}{END}"
    if old is None:
        return f"{_dumped(own)}# {_plain(facts.name)}\n\n{part}\n"
    if not is_ours(old):
        raise InvalidConfig(
            f"{CARD} was not written by an export, or its marks ({BEGIN} and {END}) are gone; put them back "
            "around the part that may be rewritten, or export to another folder"
        )
    kept, rest = _parsed(old)
    header = own | kept | {key: own[key] for key in _OWN}
    return _dumped(header) + _OURS.sub(lambda _: part, rest, count=1)


def is_ours(text: str) -> bool:
    """Tell whether a card has the marks of an export."""
    return _OURS.search(text) is not None


def _header(facts: CardFacts) -> dict[str, Any]:
    n = sum(facts.counts.values())
    return {
        "pretty_name": facts.name,
        "task_categories": ["text-generation"],
        "tags": ["clusterucb", "data-selection", "instruction-tuning"],
        "size_categories": [next((name for limit, name in _SIZES if n < limit), "1M<n<10M")],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": DATASETS_FILE}]},
        ],
    }


def _dumped(header: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n"


def _parsed(card: str) -> tuple[dict[str, Any], str]:
    found = _HEADER.match(card)
    if found is None:
        return {}, card
    try:
        header: object = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise InvalidConfig(f"the header of {CARD} is no YAML ({error}); correct it") from error
    if not isinstance(header, dict):
        raise InvalidConfig(f"the header of {CARD} is no YAML mapping; correct it")
    return cast("dict[str, Any]", header), card[found.end() :]


def _body(facts: CardFacts) -> str:
    summary = facts.summary
    n = sum(facts.counts.values())
    columns = ("messages", *added_columns(facts.options))
    by_count = sorted(facts.counts.items(), key=lambda pair: (-pair[1], pair[0]))
    parts = [
        f"{n:,} conversations to fine-tune on, selected for the target {_plain(summary.target)} out of "
        f"{facts.pool_samples:,} with ClusterUCB ([arXiv 2506.10288](https://arxiv.org/abs/2506.10288)). "
        f"Their order: {_ORDERS[facts.options.order]}.",
        _table(("selection", ""), _facts(facts)),
        _table(("source", "conversations"), [(name, f"{count:,}") for name, count in by_count]),
        _table(("column", "what it holds"), [(f"`{name}`", _COLUMN_NOTES[name]) for name in columns]),
        "Licence: none is stated here. Every source has its own, which holds for what was selected from it; "
        "set `license` in the header of this card, and keep it there.",
    ]
    return "".join(f"{part}\n\n" for part in parts)


def _facts(facts: CardFacts) -> list[tuple[str, object]]:
    summary = facts.summary
    base = cast("dict[str, Any]", summary.config.get("model") or {}).get("base")
    rows: list[tuple[str, object]] = [
        ("selection version", f"{summary.selection_version}, of {summary.created_at:%Y-%m-%d}"),
        ("pool version", f"{summary.pool_version} ({facts.pool_samples:,} samples)"),
        ("selected", f"{summary.n_selected:,}, of which {sum(facts.counts.values()):,} are here"),
        ("policy", f"{summary.policy}, {summary.mode} mode, period {summary.period}"),
        ("budget", f"{summary.budget_samples:,} samples, {summary.unspent_samples:,} unspent"),
        ("gradient evaluations", f"{summary.gradient_evaluations:,}"),
        ("certificate", _certificate(summary)),
        ("configuration", summary.config_digest),
        ("code version", summary.code_version),
    ]
    # the last part only: the rest may be the folders of whoever selected
    return rows if base is None else [*rows, ("model", PurePath(base).name)]


def _certificate(summary: SelectionSummary) -> str:
    if summary.estimated_recall is None or summary.recall_low is None or summary.recall_high is None:
        return "none: no audit was drawn"
    told = (
        f"recall of the true top {summary.n_selected:,} between {summary.recall_low:.2f} and "
        f"{summary.recall_high:.2f} (95 %), estimate {summary.estimated_recall:.2f}"
    )
    if summary.captured_low is None or summary.captured_high is None:
        return told
    return f"{told}; captured influence between {summary.captured_low:.2f} and {summary.captured_high:.2f}"


def _table(heads: tuple[str, str], rows: Sequence[tuple[str, object]]) -> str:
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows])


def _plain(value: object) -> str:
    """Return a text that stays in its line and its cell, is no mark of ours, no tag, no image and no link."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return re.sub(r"([\\|\[\]])", r"\\\1", html.escape(text, quote=False))
