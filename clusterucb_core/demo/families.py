"""The skill families of the demo pool: their names, sizes and generators."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, assert_never, get_args

import numpy as np

from clusterucb_core.demo.exchanges import Exchange
from clusterucb_core.demo.number_skills import arithmetic_story, date_puzzle, sorting, unit_conversion
from clusterucb_core.demo.text_skills import capital, json_extraction, small_talk, string_puzzle
from clusterucb_core.errors import InvalidConfig
from clusterucb_core.prompts import normalise

Family = Literal[
    "arithmetic_stories",
    "capitals",
    "dates",
    "json_extraction",
    "small_talk",
    "sorting",
    "string_puzzles",
    "unit_conversion",
]
# clean samples of each family in the pool; 2,000 in all, a tenth of them of the target's family
FAMILY_SIZES: Mapping[Family, int] = MappingProxyType(
    {
        "arithmetic_stories": 330,
        "capitals": 210,
        "dates": 270,
        "json_extraction": 260,
        "small_talk": 210,
        "sorting": 260,
        "string_puzzles": 260,
        "unit_conversion": 200,
    }
)
FAMILIES: tuple[Family, ...] = get_args(Family)
TARGET_FAMILY: Family = "unit_conversion"
MAX_TRIES = 200  # draws for one new prompt, before the family counts as used up


def family_of(source: str) -> Family:
    """Return the family of a pool source: in the demo the source's name is the family.

    Raises:
        InvalidConfig: the source is none of the demo's.
    """
    if source not in FAMILIES:
        raise InvalidConfig(f"{source!r} is no demo source; the demo's sources are {', '.join(FAMILIES)}")
    return source


def generator_of(family: Family) -> Callable[[np.random.Generator], Exchange]:
    """Return the function that draws one exchange of a family."""
    match family:
        case "arithmetic_stories":
            return arithmetic_story
        case "capitals":
            return capital
        case "dates":
            return date_puzzle
        case "json_extraction":
            return json_extraction
        case "small_talk":
            return small_talk
        case "sorting":
            return sorting
        case "string_puzzles":
            return string_puzzle
        case "unit_conversion":
            return unit_conversion
        case _:
            assert_never(family)


def normalised(exchange: Exchange) -> str:
    """Return what makes two exchanges the same sample to ingest: the prompt, normalised."""
    return normalise(exchange.prompt)


def draw_different(
    draw: Callable[[np.random.Generator], Exchange],
    count: int,
    *,
    rng: np.random.Generator,
    same: Callable[[Exchange], str] = normalised,
) -> list[Exchange]:
    """Return `count` exchanges of which no two are the same.

    Args:
        draw: gives one exchange.
        count: how many are wanted.
        rng: what they are drawn with.
        same: two exchanges with an equal value of this are the same.

    Raises:
        InvalidConfig: there are too few different ones.
    """
    found: dict[str, Exchange] = {}
    for _ in range(count * MAX_TRIES):
        if len(found) == count:
            break
        exchange = draw(rng)
        found.setdefault(same(exchange), exchange)
    if len(found) < count:
        raise InvalidConfig(f"only {len(found)} of {count} different prompts could be drawn; ask for fewer")
    return list(found.values())
