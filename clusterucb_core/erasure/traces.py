"""What gives away that a text holds that of an erased sample, cut, escaped or in other company as it may be.

Words are compared, in lower case and without what lies between them, so that neither JSON escapes nor the
quotes of a CSV row hide a text. A run of eight words of a turn is enough: a quarantined row is cut at 4 KiB,
and may hold the beginning of a turn only. Turns too short to tell a sample by count only all together.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

RUN_WORDS = 8
_STRIDE = 4
_TELLING_WORDS, _TELLING_CHARS = 4, 16
_WORD = re.compile(r"\w+")
_CODES = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
_SIGNS = re.compile(r'\\[nrtbf"/\\]')


@dataclass(frozen=True)
class Traces:
    """Runs of words, by their length, each of which is a trace; and turns that are one all together."""

    runs: dict[int, frozenset[str]]
    together: tuple[frozenset[str], ...]


def traces_of(conversations: Iterable[Sequence[dict[str, str]]]) -> Traces:
    """Return the traces of samples; system turns are none, since others have the same.

    Args:
        conversations: the messages of each sample, with `role` and `content`.
    """
    runs: dict[int, set[str]] = {}
    together: list[frozenset[str]] = []
    for messages in conversations:
        turns = [_words(turn["content"]) for turn in messages if turn["role"] != "system"]
        for words in turns:
            if len(words) >= _TELLING_WORDS or sum(map(len, words)) >= _TELLING_CHARS:
                length = min(len(words), RUN_WORDS)
                starts = range(0, len(words) - length + 1, _STRIDE)
                runs.setdefault(length, set()).update(" ".join(words[at : at + length]) for at in starts)
        if whole := frozenset(" ".join(words) for words in turns if words):
            together.append(whole)
    return Traces({length: frozenset(found) for length, found in runs.items()}, tuple(together))


def shows_trace(traces: Traces, text: str) -> bool:
    """Return whether a text, such as a raw row, holds a trace."""
    words = _words(text)
    for length, known in traces.runs.items():
        if any(" ".join(words[at : at + length]) in known for at in range(len(words) - length + 1)):
            return True
    line = f" {' '.join(words)} "
    return any(all(f" {turn} " in line for turn in turns) for turns in traces.together)


def _words(text: str) -> list[str]:
    plain = _SIGNS.sub(" ", _CODES.sub(_decoded, text))
    return _WORD.findall(plain.lower())


def _decoded(codes: re.Match[str]) -> str:
    return json.loads(f'"{codes.group()}"')
