"""Validation rows with their words in another order: what a target would be without what it says.

The words of each turn are shuffled and the white space between them stays, so that a row keeps its words,
their number and its lines. A script that writes no spaces is shuffled by the character.
"""

import re
from dataclasses import replace

import numpy as np

from clusterucb_core.records import Message, Sample, Target, TargetRow
from clusterucb_core.seeds import child_rng

# Thai to Khmer, and from the CJK radicals on; other words end at white space.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def can_be_shuffled(row: TargetRow) -> bool:
    """Tell whether any turn of a row reads differently in another order."""
    return any(len(set(_WORD.findall(message.content))) > 1 for message in row.messages)


def shuffled_rows(target: Target, *, shuffles: int, seed: int) -> dict[str, list[Sample]]:
    """Return `shuffles` samples for each validation row that has another order, by the id of the row.

    Rows that read the same count once. The id of a sample names its row, its number and the seed.
    """
    rows = {row.messages: row for row in target.validation if can_be_shuffled(row)}
    return {
        row.row_id: [_shuffled(target, row, number, seed=seed) for number in range(shuffles)]
        for row in rows.values()
    }


def _shuffled(target: Target, row: TargetRow, number: int, *, seed: int) -> Sample:
    rng = child_rng(seed, "shuffled target", f"{row.row_id} {number}")
    messages = tuple(replace(turn, content=_other_order(turn, rng)) for turn in row.messages)
    return Sample(f"{row.row_id}:shuffled:{seed}:{number}", f"target:{target.name}", messages)


def _other_order(turn: Message, rng: np.random.Generator) -> str:
    words: list[str] = _WORD.findall(turn.content)
    spaces = _WORD.split(turn.content)
    shuffled = [words[place] for place in rng.permutation(len(words))]
    return spaces[0] + "".join(word + space for word, space in zip(shuffled, spaces[1:], strict=True))
