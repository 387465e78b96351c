"""Open Assistant message trees: every way from the first message down to a leaf is a conversation."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from clusterucb_core.pool.conversations import role_of, text_of, type_name
from clusterucb_core.pool.quarantine import Reason, Unusable
from clusterucb_core.records import Message

# Far more than an honest tree has; the ways through a wide and deep one would fill the memory.
MAX_PATH_TURNS = 200_000

_Node = tuple[Message, Mapping[str, Any]]


def tree_paths(root: object) -> Iterator[tuple[Message, ...] | Unusable]:
    """Give each distinct path from the root to a leaf, trimmed to its last assistant turn.

    Replies are visited by rank, the best (lowest) first and those without a rank last in their order, so the
    first path is the one that the annotators preferred. A deleted message goes with all replies to it.

    Args:
        root: the first message, `{text, role, replies, rank?, deleted?}`, replies nested in the same form.

    Yields:
        Paths, and for each message that cannot be used the finding; the other paths are not touched by it.
        Where all paths together pass `MAX_PATH_TURNS` turns, the last is the finding that says so.
    """
    top, findings = _usable([root])
    yield from findings
    given: set[tuple[Message, ...]] = set()
    turns = 0
    stack: list[tuple[_Node, tuple[Message, ...]]] = [(node, ()) for node in top]
    while stack:
        (message, node), before = stack.pop()
        path = (*before, message)
        replies, bad = _usable(node.get("replies"))
        turns += 0 if replies else len(path)
        if turns > MAX_PATH_TURNS:
            detail = f"the paths of the tree have more than {MAX_PATH_TURNS} turns together; split the tree"
            yield Unusable(Reason.ROW_TOO_LONG, detail)
            return
        findings += bad
        yield from bad
        stack.extend((reply, path) for reply in reversed(replies))
        trimmed = _to_last_answer(path)
        if not replies and trimmed and trimmed not in given:
            given.add(trimmed)
            yield trimmed
    if not given and not findings:
        yield Unusable(Reason.NO_ANSWER, "no path of the tree has an assistant message that is not deleted")


def _usable(replies: object) -> tuple[list[_Node], list[Unusable]]:
    """Return the messages that can be used, best rank first, and what is wrong with the others."""
    nodes: list[_Node] = []
    findings: list[Unusable] = []
    if not isinstance(replies, list | None):
        return nodes, [Unusable(Reason.WRONG_TYPE, f"replies is {type_name(replies)}, a list is wanted")]
    for reply in cast("list[object]", replies or []):
        try:
            if node := _checked(reply):
                nodes.append(node)
        except Unusable as finding:
            findings.append(finding)
    return sorted(nodes, key=lambda node: _rank(node[1])), findings


def _checked(reply: object) -> _Node | None:
    if not isinstance(reply, dict):
        raise Unusable(Reason.WRONG_TYPE, f"a message is {type_name(reply)}, an object is wanted")
    node = cast("dict[str, Any]", reply)
    if node.get("deleted") is True:
        return None
    return Message(role_of(node.get("role")), text_of(node.get("text"), "text")), node


def _rank(node: Mapping[str, Any]) -> float:
    rank = node.get("rank")
    # compared as it is: a whole number of hundreds of digits is no float; one that is no number has no place
    return rank if isinstance(rank, int | float) and rank == rank else float("inf")


def _to_last_answer(path: tuple[Message, ...]) -> tuple[Message, ...]:
    end = next((at for at in range(len(path), 0, -1) if path[at - 1].role == "assistant"), 0)
    return path[:end]
