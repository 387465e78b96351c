"""Skills with words: extraction to JSON, string puzzles, small talk, capitals."""

import json

import numpy as np

from clusterucb_core.demo.exchanges import Exchange, pick, pick_several
from clusterucb_core.demo.words import CAPITALS, CITIES, COLOURS, JOBS, NAMES, PASTIMES, PLAIN_WORDS

CAPITAL_QUESTIONS = (
    "What is the capital of {country}?",
    "Name the capital of {country}.",
    "Which city is the capital of {country}?",
    "I am planning a trip to {country}. What is its capital called?",
    "Tell me the capital city of {country}, please.",
    "Quiz: {country}. Capital?",
)
COUNTRY_QUESTIONS = (
    "Which country has {capital} as its capital?",
    "{capital} is the capital of which country?",
)


def json_extraction(rng: np.random.Generator) -> Exchange:
    """Return a sentence on a person or a thing, and its facts as a JSON object."""
    if rng.random() < 0.5:
        name, age, city, job = pick(rng, NAMES), int(rng.integers(20, 70)), pick(rng, CITIES), pick(rng, JOBS)
        sentence = f"{name}, aged {age}, works as a {job} in {city}."
        facts = {"name": name, "age": age, "job": job, "city": city}
    else:
        thing, colour, price = pick(rng, PLAIN_WORDS), pick(rng, COLOURS), int(rng.integers(2, 99))
        city = pick(rng, CITIES)
        sentence = f"The shop in {city} sells a {colour} {thing} for {price} euros."
        facts = {"item": thing, "colour": colour, "price": price, "shop": city}
    question = f"Extract the {', '.join(facts)} as JSON."
    return Exchange(question, json.dumps(facts), context=sentence)


def string_puzzle(rng: np.random.Generator) -> Exchange:
    """Return a puzzle on the letters of some words."""
    words = pick_several(rng, PLAIN_WORDS, 3)
    context = " ".join(words)
    match int(rng.integers(4)):
        case 0:
            return Exchange("Write the words in reverse order.", " ".join(reversed(words)), context=context)
        case 1:
            return Exchange("Write the words in upper case.", context.upper(), context=context)
        case 2:
            letters = " ".join(word[0] for word in words)
            return Exchange("Give the first letter of each word.", letters, context=context)
        case _:
            letters = " ".join(words[0])
            question = f"Spell the word {words[0]} and then the word {words[1]}."
            return Exchange(question, f"{letters} and {' '.join(words[1])}")


def small_talk(rng: np.random.Generator) -> Exchange:
    """Return a friendly exchange, half of them with a second turn."""
    name, city = pick(rng, NAMES), pick(rng, CITIES)
    first, second = pick_several(rng, PASTIMES, 2)
    openings = (
        (
            f"Hi, I am {name} from {city}. How are you?",
            f"Hello {name}! I am fine, thank you. How is {city} today?",
        ),
        (
            f"Good morning! {name} here. I love {first}.",
            f"Good morning, {name}! Do you enjoy {first} with friends?",
        ),
        (
            f"I feel a bit tired, I spent the day {first} in {city}.",
            f"That sounds like a full day in {city}. Rest well!",
        ),
        (
            f"{name} and I went {first}. Any plan for the weekend?",
            f"Maybe some {second}. Greetings to {name}!",
        ),
    )
    question, answer = pick(rng, openings)
    if rng.random() < 0.5:
        return Exchange(question, answer)
    follow_up = (f"What do you think of {second}?", f"I like {second} a lot. It is a good way to relax.")
    return Exchange(question, answer, follow_up=follow_up)


def capital(rng: np.random.Generator) -> Exchange:
    """Return a question on a capital, or on the country that it belongs to."""
    country, city = pick(rng, CAPITALS)
    question = pick(rng, CAPITAL_QUESTIONS + COUNTRY_QUESTIONS)
    return Exchange(question.format(country=country, capital=city), f"{city} is the capital of {country}.")
