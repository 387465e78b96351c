"""Skills with numbers: arithmetic stories, dates, unit conversion, sorting. Every answer is computed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from clusterucb_core.demo.exchanges import Exchange, pick, pick_several
from clusterucb_core.demo.words import NAMES, PLAIN_WORDS, THINGS

FIRST_DAY = date(1990, 1, 1)
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# large unit, small unit, small units in one large unit
UNITS = (
    ("kilometres", "metres", 1000), ("metres", "centimetres", 100), ("centimetres", "millimetres", 10),
    ("kilograms", "grams", 1000), ("tonnes", "kilograms", 1000), ("litres", "millilitres", 1000),
    ("hours", "minutes", 60), ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7),
    ("feet", "inches", 12), ("yards", "feet", 3), ("pounds", "ounces", 16), ("gallons", "pints", 8),
)  # fmt: skip
UNIT_QUESTIONS = (
    "Convert {value} {given} to {wanted}.",
    "How many {wanted} are {value} {given}?",
    "Express {value} {given} in {wanted}.",
    "What is {value} {given} in {wanted}?",
)
HELD_OUT_SHARE = 4  # one conversion in so many is kept for the target


@dataclass(frozen=True, slots=True)
class Conversion:
    """`value` of the unit `given`, asked for in the unit `wanted`."""

    value: int
    given: str
    wanted: str
    factor: int
    multiply: bool

    @property
    def held_out(self) -> bool:
        """Whether only the target may ask this: by hash, so that pool, model and target never share one."""
        text = f"{self.value} {self.given} {self.wanted}"
        return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_SHARE == 0


def arithmetic_story(rng: np.random.Generator) -> Exchange:
    """Return a story of one addition, subtraction or multiplication."""
    name, thing = pick(rng, NAMES), pick(rng, THINGS)
    small, large = int(rng.integers(2, 40)), int(rng.integers(40, 99))
    match int(rng.integers(3)):
        case 0:
            story = (
                f"{name} has {large} {thing} and buys {small} more. How many {thing} does {name} have now?"
            )
            working, result = f"{large} + {small}", large + small
        case 1:
            story = f"{name} had {large} {thing} and gave away {small}. How many {thing} are left?"
            working, result = f"{large} - {small}", large - small
        case _:
            boxes = int(rng.integers(2, 10))
            story = (
                f"{name} packs {small} {thing} into each of {boxes} boxes. How many {thing} is that in all?"
            )
            working, result = f"{small} x {boxes}", small * boxes
    return Exchange(story, f"{name} counts {working} = {result}. The answer is {result} {thing}.")


def date_puzzle(rng: np.random.Generator) -> Exchange:
    """Return a question on a weekday, a later date or a distance in days."""
    day = FIRST_DAY + timedelta(days=int(rng.integers(14_000)))
    distance = int(rng.integers(2, 60))
    later = day + timedelta(days=distance)
    match int(rng.integers(3)):
        case 0:
            weekday = WEEKDAYS[day.weekday()]
            return Exchange(
                f"Which day of the week was {spelled_date(day)}?", f"{spelled_date(day)} was a {weekday}."
            )
        case 1:
            question = f"Which date is {distance} days after {spelled_date(day)}?"
            return Exchange(question, f"The date {distance} days later is {spelled_date(later)}.")
        case _:
            question = f"Count the days from {spelled_date(day)} to {spelled_date(later)}."
            return Exchange(question, f"From the first date to the second there are {distance} days.")


def spelled_date(day: date) -> str:
    """Return a date as `3 March 2021`, whatever the locale."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def sorting(rng: np.random.Generator) -> Exchange:
    """Return a list of numbers or words to put in order, with a rationale."""
    count = int(rng.integers(4, 7))
    if rng.random() < 0.5:
        numbers = pick_several(rng, range(2, 100), count)
        downwards = bool(rng.random() < 0.5)
        ordered = [str(number) for number in sorted(numbers, reverse=downwards)]
        order = "from large to small" if downwards else "from small to large"
        question = f"Sort these numbers {order}: {', '.join(map(str, numbers))}"
        return Exchange(
            question, ", ".join(ordered), rationale=f"First comes {ordered[0]}, last {ordered[-1]}."
        )
    words = pick_several(rng, PLAIN_WORDS, count)
    ordered = sorted(words)
    question = f"Put these words in alphabetical order: {', '.join(words)}"
    return Exchange(question, ", ".join(ordered), rationale=f"First comes {ordered[0]}, last {ordered[-1]}.")


def unit_conversion(rng: np.random.Generator) -> Exchange:
    """Return a conversion that the target never asks."""
    return _unit_exchange(rng, accept=lambda conversion: not conversion.held_out)


def held_out_conversion(rng: np.random.Generator) -> Exchange:
    """Return a conversion that only the target asks."""
    return _unit_exchange(rng, accept=lambda conversion: conversion.held_out)


def _unit_exchange(rng: np.random.Generator, *, accept: Callable[[Conversion], bool]) -> Exchange:
    conversion = _draw_conversion(rng)
    while not accept(conversion):
        conversion = _draw_conversion(rng)
    value, given, wanted, factor = conversion.value, conversion.given, conversion.wanted, conversion.factor
    question = pick(rng, UNIT_QUESTIONS).format(value=value, given=given, wanted=wanted)
    if conversion.multiply:
        answer = f"Multiply {value} {given} by {factor}: {value} * {factor} gives {value * factor} {wanted}."
    else:
        answer = f"Divide {value} {given} by {factor}: {value} / {factor} gives {value // factor} {wanted}."
    return Exchange(question, answer)


def _draw_conversion(rng: np.random.Generator) -> Conversion:
    large, small, factor = pick(rng, UNITS)
    value = int(rng.integers(2, 100))
    if rng.random() < 0.5:
        return Conversion(value, large, small, factor, multiply=True)
    return Conversion(value * factor, small, large, factor, multiply=False)
