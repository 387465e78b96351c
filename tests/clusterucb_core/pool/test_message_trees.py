from typing import Any

from clusterucb_core.pool.message_trees import MAX_PATH_TURNS, tree_paths
from clusterucb_core.pool.quarantine import Reason, Unusable


def _node(text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Make a message; its role follows from its first letter, p or a."""
    role = "assistant" if text.startswith("a") else "prompter"
    return {"text": text, "role": role, "replies": list(replies), **more}


def _paths(root: object) -> list[str]:
    return [
        str(path.reason) if isinstance(path, Unusable) else " ".join(message.content for message in path)
        for path in tree_paths(root)
    ]


def test_every_leaf_is_a_path_and_better_ranks_come_first() -> None:
    tree = _node("p", _node("a1"), _node("a2", rank=1), _node("a3", rank=0), _node("a4"))
    assert _paths(tree) == ["p a3", "p a2", "p a1", "p a4"]


def test_a_path_ends_with_its_last_answer_and_is_given_once() -> None:
    tree = _node("p", _node("a", _node("p1"), _node("p2"), _node("p3", _node("a3"))))
    assert _paths(tree) == ["p a", "p a p3 a3"]


def test_a_deleted_message_goes_with_its_replies() -> None:
    tree = _node(
        "p", _node("a1", _node("p2", _node("a3")), deleted=True), _node("a4", _node("p5", deleted=True))
    )
    assert _paths(tree) == ["p a4"]


def test_a_tree_without_an_answer_is_said_to_have_none() -> None:
    assert _paths(_node("p")) == ["no_answer"]
    assert _paths(_node("p", _node("a", deleted=True))) == ["no_answer"]
    assert _paths(_node("p", _node("a"), deleted=True)) == ["no_answer"]


def test_a_bad_message_costs_no_other_path() -> None:
    tree = _node("p", 5, _node("a1", role="tool"), _node("a2", {"role": "prompter"}))  # type: ignore[arg-type]
    assert _paths(tree) == ["wrong_type", "unknown_role", "missing_field", "p a2"]


def test_what_is_no_tree_at_all_is_one_finding() -> None:
    assert _paths("text") == ["wrong_type"]
    assert [
        path.reason for path in tree_paths(_node("p") | {"replies": "x"}) if isinstance(path, Unusable)
    ] == [Reason.WRONG_TYPE]


def test_a_deep_chain_is_walked_without_recursion() -> None:
    tree = _node("a0")
    for depth in range(1, 5000):
        tree = _node(f"{'p' if depth % 2 else 'a'}{depth}", tree)
    (path,) = tree_paths(tree)
    assert not isinstance(path, Unusable)
    assert len(path) == 5000


def test_a_rank_of_hundreds_of_digits_or_none_at_all_orders_as_numbers_do() -> None:
    tree = _node("p", _node("a1", rank=10**400), _node("a2", rank=float("nan")), _node("a3", rank=-(10**400)))
    assert _paths(tree) == ["p a3", "p a1", "p a2"]


def test_a_tree_whose_paths_would_fill_the_memory_is_given_up() -> None:
    tree = _node("a", *[_node("p same")] * 30_000)
    for _ in range(400):
        tree = _node("a", tree)
    *paths, last = list(tree_paths(_node("p", tree)))
    assert isinstance(last, Unusable)
    assert last.reason is Reason.ROW_TOO_LONG
    assert len(paths) == 1
    assert MAX_PATH_TURNS < 30_000 * 400
