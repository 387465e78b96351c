"""One prompt with its answer, in the pieces that the pool's file shapes need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One generated sample.

    `context` is the text that an Alpaca row keeps in `input`, `rationale` what is said before the answer, and
    `follow_up` a second user turn with its answer.
    """

    instruction: str
    answer: str
    context: str = ""
    rationale: str = ""
    follow_up: tuple[str, str] | None = None

    @property
    def prompt(self) -> str:
        """Return the first user turn."""
        return f"{self.instruction}\n\n{self.context}" if self.context else self.instruction

    @property
    def completion(self) -> str:
        """Return the first assistant turn."""
        return f"{self.rationale} {self.answer}" if self.rationale else self.answer


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of the options, each equally likely."""
    return options[int(rng.integers(len(options)))]


def pick_several(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """Return `count` different options in random order."""
    return [options[int(position)] for position in rng.permutation(len(options))[:count]]
