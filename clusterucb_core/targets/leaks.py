"""Finds pool samples that carry a target's test rows: the same prompt, or a run of 13 words of it."""

import functools
import string
import unicodedata
from collections.abc import Iterable, Iterator

from clusterucb_core.prompts import normalise, normalised_prompt
from clusterucb_core.records import Exclusion, Message, Sample, Target

RUN_WORDS = 13
# Any 13 words in a row hold 7 in a row that start at a multiple of 7: only those are looked up, and a hit is
# then checked word by word.
_ANCHOR_WORDS = 7


def find_leaks(target: Target, samples: Iterable[Sample]) -> list[Exclusion]:
    """Return one exclusion for each pool sample that leaks a test row of the target.

    Compared are the normalised prompts as a whole, and the words of every user turn of the test prompts with
    the words of every user and assistant turn of the sample. System turns are left out of the second: the
    same one stands before unrelated samples. Words are in lower case and end at white space or punctuation.

    Args:
        target: the target; without test rows nothing leaks.
        samples: the pool, read once; memory grows with the target only.

    Returns:
        Exclusions of stage `leak`, in the order of the samples. The reason is `same_prompt` or
        `shared_13_words`; the detail names the test row and, for the second, the words.
    """
    prompts: dict[str, str] = {}
    runs: dict[str, str] = {}
    for row in target.test:
        prompts.setdefault(normalised_prompt(row.messages), row.row_id)
        for words in _turns(row.messages[:-1], ("user",)):
            for run in _windows(words, RUN_WORDS):
                runs.setdefault(run, row.row_id)
    anchors = {anchor for run in runs for anchor in _windows(run.split(" "), _ANCHOR_WORDS)}
    return [leak for sample in samples if (leak := _leak(sample, prompts, runs, anchors)) is not None]


def _leak(
    sample: Sample, prompts: dict[str, str], runs: dict[str, str], anchors: set[str]
) -> Exclusion | None:
    row_id = prompts.get(normalised_prompt(sample.messages)) if prompts else None
    if row_id is not None:
        return Exclusion(sample.sample_id, "leak", "same_prompt", f"test row {row_id} has the same prompt")
    if not anchors:
        return None
    for words in _turns(sample.messages, ("user", "assistant")):
        run = _shared_run(words, runs, anchors)
        if run is not None:
            detail = f"test row {runs[run]} shares the words: {run}"
            return Exclusion(sample.sample_id, "leak", "shared_13_words", detail)
    return None


def _shared_run(words: list[str], runs: dict[str, str], anchors: set[str]) -> str | None:
    if len(words) < RUN_WORDS:
        return None
    for anchor in range(0, len(words) - _ANCHOR_WORDS + 1, _ANCHOR_WORDS):
        if " ".join(words[anchor : anchor + _ANCHOR_WORDS]) not in anchors:
            continue
        first = max(0, anchor + _ANCHOR_WORDS - RUN_WORDS)
        for run in _windows(words[first : anchor + RUN_WORDS], RUN_WORDS):
            if run in runs:
                return run
    return None


def _turns(messages: Iterable[Message], roles: tuple[str, ...]) -> Iterator[list[str]]:
    spaced = _punctuation_to_blanks()
    for message in messages:
        if message.role in roles:
            yield normalise(message.content).translate(spaced).split()


def _windows(words: list[str], width: int) -> Iterator[str]:
    return (" ".join(words[i : i + width]) for i in range(len(words) - width + 1))


@functools.cache
def _punctuation_to_blanks() -> dict[int, str]:
    characters = map(chr, range(0x10000))
    return {
        ord(character): " "
        for character in characters
        if character in string.punctuation or unicodedata.category(character).startswith("P")
    }
