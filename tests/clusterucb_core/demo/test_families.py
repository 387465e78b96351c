"""The answers of the generated skills, worked out a second time."""

import json
import re
from datetime import date, datetime, timedelta

import numpy as np
import pytest

from clusterucb_core.demo import number_skills
from clusterucb_core.demo.exchanges import Exchange
from clusterucb_core.demo.families import (
    FAMILIES,
    FAMILY_SIZES,
    TARGET_FAMILY,
    draw_different,
    family_of,
    generator_of,
)
from clusterucb_core.demo.words import CAPITALS
from clusterucb_core.errors import InvalidConfig

LENGTHS = {
    "kilometres": 1_000_000, "metres": 1000, "centimetres": 10, "millimetres": 1, "tonnes": 1_000_000,
    "kilograms": 1000, "grams": 1, "litres": 1000, "millilitres": 1, "weeks": 604_800, "days": 86_400,
    "hours": 3600, "minutes": 60, "seconds": 1, "yards": 36, "feet": 12, "inches": 1, "pounds": 16,
    "ounces": 1, "gallons": 8, "pints": 1,
}  # fmt: skip


def drawn(family: str, count: int = 150) -> list[Exchange]:
    return draw_different(generator_of(family_of(family)), count, rng=np.random.default_rng(3))


def numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def day(text: str) -> date:
    found = re.search(r"\d+ [A-Z][a-z]+ \d{4}", text)
    assert found is not None
    return datetime.strptime(found.group(), "%d %B %Y").date()


def test_arithmetic_stories_have_the_right_result():
    for exchange in drawn("arithmetic_stories"):
        first, second = numbers(exchange.prompt)
        if "more" in exchange.prompt:
            expected = first + second
        elif "gave away" in exchange.prompt:
            expected = first - second
        else:
            expected = first * second
        assert numbers(exchange.completion)[-2:] == [expected, expected], exchange


def test_dates_agree_with_the_calendar():
    for exchange in drawn("dates"):
        if "day of the week" in exchange.prompt:
            assert day(exchange.prompt).strftime("%A") in exchange.completion
        elif "days after" in exchange.prompt:
            later = day(exchange.prompt) + timedelta(days=numbers(exchange.prompt)[0])
            assert day(exchange.completion) == later
        else:
            first, second = exchange.prompt.split(" to ")
            assert numbers(exchange.completion) == [(day(second) - day(first)).days]


@pytest.mark.parametrize("generator", [number_skills.unit_conversion, number_skills.held_out_conversion])
def test_unit_conversions_keep_the_quantity(generator):
    for exchange in draw_different(generator, 150, rng=np.random.default_rng(4)):
        value, result = numbers(exchange.prompt)[0], numbers(exchange.completion)[-1]
        given = re.search(rf"{value} (\w+)", exchange.prompt).group(1)
        wanted = exchange.completion.rstrip(".").split()[-1]
        assert wanted in exchange.prompt
        assert value * LENGTHS[given] == result * LENGTHS[wanted], exchange


def test_sorted_lists_are_in_order():
    for exchange in drawn("sorting"):
        items = exchange.prompt.split(": ")[1].split(", ")
        if "alphabetical" in exchange.prompt:
            expected = sorted(items)
        else:
            expected = sorted(items, key=int, reverse="large to small" in exchange.prompt)
        assert exchange.answer.split(", ") == expected
        assert exchange.rationale == f"First comes {expected[0]}, last {expected[-1]}."


def test_extracted_facts_are_json_and_stand_in_the_text():
    for exchange in drawn("json_extraction"):
        facts = json.loads(exchange.answer)
        assert exchange.instruction == f"Extract the {', '.join(facts)} as JSON."
        assert all(str(value) in exchange.context for value in facts.values())


def test_string_puzzles_are_solved():
    for exchange in drawn("string_puzzles"):
        words = exchange.context.split()
        match exchange.instruction.split()[-1]:
            case "order.":
                assert exchange.answer.split() == words[::-1]
            case "case.":
                assert exchange.answer.lower().split() == words
            case "word.":
                assert exchange.answer.split() == [word[0] for word in words]
            case _:
                first, second = re.findall(r"the word (\w+)", exchange.instruction)
                assert exchange.answer.replace(" ", "") == f"{first}and{second}"


def test_capitals_belong_to_their_country():
    for exchange in drawn("capitals"):
        city, country = exchange.answer.rstrip(".").split(" is the capital of ")
        assert dict(CAPITALS)[country] == city
        assert city in exchange.prompt or country in exchange.prompt


def test_small_talk_answers_the_person_and_sometimes_goes_on():
    exchanges = drawn("small_talk")
    assert {exchange.follow_up is None for exchange in exchanges} == {True, False}
    assert all(
        set(exchange.prompt.split()) & set(exchange.answer.replace("!", "").split()) for exchange in exchanges
    )


def test_the_target_family_is_a_tenth_of_two_thousand_samples():
    assert sum(FAMILY_SIZES.values()) == 2000
    assert FAMILY_SIZES[TARGET_FAMILY] == 200
    assert tuple(FAMILY_SIZES) == FAMILIES


def test_a_source_name_is_its_family_and_another_name_is_refused():
    assert family_of("dates") == "dates"
    with pytest.raises(InvalidConfig, match=r"'gsm8k' is no demo source; .* arithmetic_stories, capitals"):
        family_of("gsm8k")


def test_asking_for_more_different_prompts_than_there_are_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidConfig, match="only 1 of 2 different prompts"):
        draw_different(lambda _: Exchange("Hello?", "Hello!"), 2, rng=rng)
