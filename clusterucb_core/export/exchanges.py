"""Conversations as strictly alternating turns, which alpaca, sharegpt and LLaMA-Factory want."""

from collections.abc import Iterable
from dataclasses import dataclass

Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Exchange:
    """A conversation as pairs of what the user said and what the assistant answered.

    System messages are joined, turns of one speaker in a row too; a conversation that the assistant opens has
    an empty first user turn, and a last user turn without an answer is dropped: nothing is learned from it.
    """

    system: str
    pairs: list[tuple[str, str]]


@dataclass(frozen=True)
class Survey:
    """How many conversations have a system message, have more than one pair, and do not alternate strictly.

    Of those that do not, `exchange_of` joins or moves turns, and LLaMA-Factory skips them as they are.
    """

    systems: int
    histories: int
    reshaped: int


def exchange_of(turns: Turns) -> Exchange:
    """Return a conversation brought into pairs."""
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    spoken: list[tuple[str, str]] = []
    for turn in turns:
        if turn["role"] == "system":
            continue
        if spoken and spoken[-1][0] == turn["role"]:
            spoken[-1] = (turn["role"], f"{spoken[-1][1]}\n\n{turn['content']}")
        else:
            spoken.append((turn["role"], turn["content"]))
    if spoken and spoken[0][0] == "assistant":
        spoken.insert(0, ("user", ""))
    texts = [text for _, text in spoken]
    return Exchange(system, list(zip(texts[0::2], texts[1::2], strict=False)))


def alternates(turns: Turns) -> bool:
    """Tell whether a conversation is at most one system message, then user and assistant by turns."""
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    return bool(spoken) and spoken == ["user", "assistant"] * (len(spoken) // 2)


def survey(conversations: Iterable[Turns]) -> Survey:
    """Count what decides how conversations fit the formats."""
    systems = histories = reshaped = 0
    for turns in conversations:
        exchange = exchange_of(turns)
        systems += bool(exchange.system)
        histories += len(exchange.pairs) > 1
        reshaped += not alternates(turns)
    return Survey(systems, histories, reshaped)
