"""The prompt of a conversation, in the form in which two prompts are compared."""

from collections.abc import Sequence

from clusterucb_core.records import Message


def normalise(text: str) -> str:
    """Return the text in lower case with every run of white space as one blank."""
    return " ".join(text.lower().split())


def normalised_prompt(messages: Sequence[Message]) -> str:
    """Return all turns before the first assistant turn, normalised and joined by newlines."""
    turns: list[str] = []
    for message in messages:
        if message.role == "assistant":
            break
        turns.append(normalise(message.content))
    return "\n".join(turns)
