"""From the fields of a row to the turns of a conversation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from clusterucb_core.pool.conversations import content_of, is_placeholder, role_of, text_of, type_name
from clusterucb_core.pool.quarantine import Reason, Unusable
from clusterucb_core.records import Message


def pair(prompt: str, answer: str) -> tuple[Message, Message]:
    """Return the two turns of a prompt and its answer."""
    return Message("user", prompt), Message("assistant", answer)


def first_value(row: Mapping[str, object], *keys: str) -> object:
    """Return the first value among some keys that is there."""
    for key in keys:
        value = row.get(key)
        if value is not None:
            return value
    return None


def first_text(row: Mapping[str, object], *keys: str) -> str:
    """Return the first text among some keys; a row without any is unusable."""
    return text_of(first_value(row, *keys), " or ".join(keys))


def with_input(instruction: str, value: object) -> str:
    """Return an instruction with its input below it, where it has one."""
    text = "" if value is None else text_of(value, "input")
    return instruction.strip() if is_placeholder(text) else f"{instruction.strip()}\n\n{text.strip()}"


def system_turns(row: Mapping[str, object]) -> list[Message]:
    """Return the system message that a row holds beside its turns."""
    value = row.get("system")
    return [] if value is None else [Message("system", text_of(value, "system"))]


def history_turns(row: Mapping[str, object]) -> list[Message]:
    """Return the turns that came before, as pairs of a prompt and its answer."""
    value = row.get("history") or []
    if not isinstance(value, list):
        raise Unusable(Reason.WRONG_TYPE, f"history is {type_name(value)}, a list is wanted")
    turns: list[Message] = []
    for at, both in enumerate(cast("list[object]", value)):
        if not isinstance(both, list) or len(cast("list[object]", both)) != 2:
            raise Unusable(Reason.WRONG_TYPE, f"history[{at}] is no pair of a prompt and its answer")
        prompt, answer = cast("list[object]", both)
        turns += pair(text_of(prompt, f"history[{at}][0]"), text_of(answer, f"history[{at}][1]"))
    return turns


def turns_of(value: object, field: str) -> list[Message]:
    """Return the turns of a list of objects with role and content, or from and value."""
    if not isinstance(value, list):
        raise Unusable(Reason.WRONG_TYPE, f"{field} is {type_name(value)}, a list is wanted")
    return [_turn(turn, f"{field}[{at}]") for at, turn in enumerate(cast("list[object]", value))]


def instance_turns(row: Mapping[str, object]) -> Iterator[Sequence[Message] | Unusable]:
    """Yield the two turns of each instance of an instruction, or what is wrong with it."""
    instruction, instances = first_text(row, "instruction"), row["instances"]
    if not isinstance(instances, list):
        raise Unusable(Reason.WRONG_TYPE, f"instances is {type_name(instances)}, a list is wanted")
    if not instances:
        raise Unusable(Reason.NO_ANSWER, "instances is empty")
    for at, value in enumerate(cast("list[object]", instances)):
        try:
            if not isinstance(value, dict):
                raise Unusable(
                    Reason.WRONG_TYPE, f"instances[{at}] is {type_name(value)}, an object is wanted"
                )
            instance = cast("dict[str, object]", value)
            prompt = with_input(instruction, first_value(instance, "input"))
            yield pair(prompt, first_text(instance, "output"))
        except Unusable as finding:
            yield finding


def outline(value: object) -> str:
    """Return what a row is made of, free of characters that a terminal or a table cannot show."""
    match value:
        case dict():
            return f"the keys {list(cast('dict[str, object]', value))[:40]!a}"
        case tuple():
            columns = cast("tuple[str, ...]", value)
            return f"{len(columns)} columns and no header of known names: {[c[:40] for c in columns[:8]]!a}"
        case _:
            return f"no keys: it is {type_name(value)}"


def _turn(value: object, field: str) -> Message:
    if not isinstance(value, dict):
        raise Unusable(Reason.WRONG_TYPE, f"{field} is {type_name(value)}, an object is wanted")
    turn = cast("dict[str, object]", value)
    role, content = first_value(turn, "role", "from"), first_value(turn, "content", "value")
    if role is None or content is None:
        detail = f"{field} lacks role and content, or from and value; it has {outline(turn)}"
        raise Unusable(Reason.MISSING_FIELD, detail)
    return Message(role_of(role), content_of(content, field))
