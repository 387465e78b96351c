"""From the turns of a row to the messages of a sample: roles, trimming, checks, content id."""

import hashlib
import json
from collections.abc import Sequence
from typing import cast

from clusterucb_core.pool.quarantine import MAX_ROW_BYTES, Reason, Unusable
from clusterucb_core.records import Message, Role

END_MARKERS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|eot_id|>")
PLACEHOLDER_INPUTS = frozenset({"n/a", "none"})
# Sources write these in many wrappings: "<no input>", "< noinput >", "No input.", "[noinput]".
WRAPPED_PLACEHOLDER_INPUTS = frozenset({"no input", "noinput"})
_json_text = json.JSONEncoder(ensure_ascii=False).encode
_WRAPPING = ' .<>()[]{}"\\'
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


def role_of(name: object) -> Role:
    """Return the role that a source calls by a name of its own.

    Raises:
        Unusable: the name is no text, or no known role.
    """
    if not isinstance(name, str):
        raise Unusable(Reason.WRONG_TYPE, f"a role is {type_name(name)}, a text is wanted")
    role = ROLES.get(name) or ROLES.get(name.strip().lower())
    if role is None:
        raise Unusable(Reason.UNKNOWN_ROLE, f"role {name!r}; known are {', '.join(ROLES)}")
    return role


def text_of(value: object, field: str) -> str:
    """Return a value that must be a text.

    Raises:
        Unusable: the value is null or of another type, or the text holds a NUL or half a surrogate pair.
    """
    if value is None:
        raise Unusable(Reason.MISSING_FIELD, f"{field} is null")
    if not isinstance(value, str):
        raise Unusable(Reason.WRONG_TYPE, f"{field} is {type_name(value)}, a text is wanted")
    if "\x00" in value:
        raise Unusable(Reason.NUL_CHARACTER, f"{field} has a NUL at character {value.index(chr(0))}")
    if not value.isascii():
        _refuse_surrogates(value, field)
    return value


def content_of(value: object, field: str) -> str:
    """Return the text of a turn's content: a text, or a list of text parts, which newlines join.

    Raises:
        Unusable: as `text_of`, and for a part that is no text.
    """
    if not isinstance(value, list):
        return text_of(value, field)
    texts: list[str] = []
    for part in cast("list[object]", value):
        text = cast("dict[str, object]", part).get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise Unusable(Reason.WRONG_TYPE, f"{field} has a part without text; only text parts can be used")
        texts.append(text)
    return text_of("\n".join(texts), field)


def conversation(turns: Sequence[Message], *, min_chars: int) -> tuple[Message, ...]:
    """Return the messages of one sample.

    White space around every turn and end markers after an assistant turn go. Assistant turns before the first
    user turn, what follows the last assistant turn, and empty system turns are dropped.

    Args:
        turns: the turns as read, in order.
        min_chars: the fewest characters that all turns together must have.

    Raises:
        Unusable: no user turn, no assistant turn, an empty one among them, or too few characters.
    """
    messages = _between_prompt_and_answer([_trimmed(turn) for turn in turns])
    for number, message in enumerate(messages, start=1):
        if not message.content:
            reason = Reason.NO_ANSWER if message.role == "assistant" else Reason.NO_PROMPT
            raise Unusable(reason, f"the {message.role} turn {number} of {len(messages)} is empty")
    chars = count_chars(messages)
    if chars > MAX_ROW_BYTES:
        raise Unusable(Reason.ROW_TOO_LONG, f"{chars} characters; at most {MAX_ROW_BYTES} are taken")
    if chars < min_chars:
        raise Unusable(Reason.TOO_SHORT, f"{chars} characters; min_chars is {min_chars}")
    return tuple(messages)


def count_chars(messages: Sequence[Message]) -> int:
    """Return the characters of all turns together."""
    return sum(len(message.content) for message in messages)


def messages_json(messages: Sequence[Message]) -> str:
    """Return the messages as JSON, a list of objects with `role` and `content`, in one fixed form."""
    # what json.dumps writes for a list of objects, in a fifth of its time: a pool has millions of them
    turns = [f'{{"role":"{message.role}","content":{_json_text(message.content)}}}' for message in messages]
    return f"[{','.join(turns)}]"


def content_id(messages: Sequence[Message], copy: int = 1) -> str:
    """Return 32 hex digits that name roles and contents, whatever the source.

    Args:
        messages: the messages of a sample.
        copy: 1 for the first sample of this content; a pool that keeps repeats counts them on.
    """
    text = messages_json(messages) + (f"\x1f{copy}" if copy > 1 else "")
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_placeholder(text: str) -> bool:
    """Return whether an input says in words that there is none, or is blank."""
    stripped = text.strip().lower()
    if not stripped or stripped in PLACEHOLDER_INPUTS:
        return True
    return stripped.strip(_WRAPPING) in WRAPPED_PLACEHOLDER_INPUTS


def type_name(value: object) -> str:
    """Return what a JSON value is, in the words of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return type(value).__name__


def _refuse_surrogates(value: str, field: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        detail = f"{field} has half a surrogate pair at character {error.start}"
        raise Unusable(Reason.LONE_SURROGATE, detail) from error


def _trimmed(turn: Message) -> Message:
    text = turn.content.strip()
    if turn.role == "assistant":
        text = text[: _end_without_markers(text)]
    return turn if text == turn.content else Message(turn.role, text)


def _end_without_markers(text: str) -> int:
    # the text is cut once: a megabyte of markers, cut one by one, would take minutes
    end = len(text)
    while text.endswith(END_MARKERS, 0, end):
        end -= next(len(marker) for marker in END_MARKERS if text.endswith(marker, 0, end))
        while end and text[end - 1].isspace():
            end -= 1
    return end


def _between_prompt_and_answer(turns: list[Message]) -> list[Message]:
    kept = [turn for turn in turns if turn.content or turn.role != "system"]
    first_user = next((at for at, turn in enumerate(kept) if turn.role == "user"), None)
    if first_user is None:
        raise Unusable(Reason.NO_PROMPT, "no user turn")
    messages = [turn for turn in kept[:first_user] if turn.role != "assistant"] + kept[first_user:]
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise Unusable(Reason.NO_ANSWER, "no assistant turn after the first user turn")
    return messages
