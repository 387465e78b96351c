import hashlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb_core.pool.conversations import (
    END_MARKERS,
    content_id,
    content_of,
    conversation,
    is_placeholder,
    messages_json,
    role_of,
    text_of,
)
from clusterucb_core.pool.quarantine import MAX_ROW_BYTES, Reason, Unusable
from clusterucb_core.records import Message

INITIALS = {"s": "system", "u": "user", "a": "assistant"}


def _turns(*texts: str) -> list[Message]:
    """Make turns of texts like "u:Hello"."""
    return [Message(INITIALS[text[0]], text[2:]) for text in texts]  # type: ignore[arg-type]


def _kept(*texts: str, min_chars: int = 1) -> list[str]:
    messages = conversation(_turns(*texts), min_chars=min_chars)
    return [f"{message.role[0]}:{message.content}" for message in messages]


def _reason(*texts: str, min_chars: int = 1) -> Reason:
    with pytest.raises(Unusable) as caught:
        conversation(_turns(*texts), min_chars=min_chars)
    return caught.value.reason


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        (["u:Q", "a:A"], ["u:Q", "a:A"]),
        (["a:Hello", "u:Q", "a:A"], ["u:Q", "a:A"]),
        (["s:S", "a:Hello", "u:Q", "a:A"], ["s:S", "u:Q", "a:A"]),
        (["u:Q", "a:A", "u:Thanks"], ["u:Q", "a:A"]),
        (["u:Q", "a:A", "u:R", "s:S"], ["u:Q", "a:A"]),
        (["s: ", "u:Q", "a:A"], ["u:Q", "a:A"]),
        (["u: Q\n", "a:\tA "], ["u:Q", "a:A"]),
        (["u:Q", "u:R", "a:A", "a:B"], ["u:Q", "u:R", "a:A", "a:B"]),
    ],
)
def test_a_conversation_runs_from_the_first_user_turn_to_the_last_answer(
    turns: list[str], kept: list[str]
) -> None:
    assert _kept(*turns) == kept


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], Reason.NO_PROMPT),
        (["a:A"], Reason.NO_PROMPT),
        (["s:S", "a:A"], Reason.NO_PROMPT),
        (["u:Q"], Reason.NO_ANSWER),
        (["u:Q", "a: \n"], Reason.NO_ANSWER),
        (["u:Q", "a:<|endoftext|>"], Reason.NO_ANSWER),
        (["u: ", "a:A"], Reason.NO_PROMPT),
        (["u:Q", "a:A", "u:", "a:B"], Reason.NO_PROMPT),
        (["u:Q", "a:", "u:R", "a:B"], Reason.NO_ANSWER),
    ],
)
def test_a_conversation_without_prompt_or_answer_says_which(turns: list[str], reason: Reason) -> None:
    assert _reason(*turns) is reason


@pytest.mark.parametrize("marker", END_MARKERS)
def test_end_markers_go_from_answers_only(marker: str) -> None:
    assert _kept(f"u:Q{marker}", f"a:A {marker}\n") == [f"u:Q{marker}", "a:A"]


def test_several_end_markers_go_and_one_inside_the_answer_stays() -> None:
    assert _kept("u:Q", "a:A </s> B</s> <|im_end|>") == ["u:Q", "a:A </s> B"]


def test_the_least_length_counts_all_turns_together() -> None:
    assert _kept("u:abc", "a:de", min_chars=5) == ["u:abc", "a:de"]
    assert _reason("u:abc", "a:de", min_chars=6) is Reason.TOO_SHORT


def test_a_conversation_above_the_row_limit_is_refused() -> None:
    assert _reason("u:Q", "a:" + "x" * MAX_ROW_BYTES) is Reason.ROW_TOO_LONG


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.MISSING_FIELD),
        (3, Reason.WRONG_TYPE),
        (["a"], Reason.WRONG_TYPE),
        ("a\x00b", Reason.NUL_CHARACTER),
        ("a\ud800b", Reason.LONE_SURROGATE),
    ],
)
def test_a_value_that_is_no_usable_text_says_why(value: object, reason: Reason) -> None:
    with pytest.raises(Unusable, match="answer") as caught:
        text_of(value, "answer")
    assert caught.value.reason is reason


def test_text_parts_are_joined_and_other_parts_refused() -> None:
    assert content_of([{"type": "text", "text": "a"}, "b"], "content") == "a\nb"
    with pytest.raises(Unusable, match="only text parts"):
        content_of([{"type": "image_url", "image_url": "x"}], "content")


@pytest.mark.parametrize("name", ["human", "User", "prompter"])
def test_user_has_many_names(name: str) -> None:
    assert role_of(name) == "user"


def test_a_role_outside_the_list_is_refused_by_name() -> None:
    with pytest.raises(Unusable, match="'tool'") as caught:
        role_of("tool")
    assert caught.value.reason is Reason.UNKNOWN_ROLE
    with pytest.raises(Unusable, match="a number"):
        role_of(1)


@pytest.mark.parametrize(
    "text", ["", " ", "No input", "<no input>", "< noinput >", "No input.", "[noinput]", "N/A", "None"]
)
def test_inputs_that_say_there_is_none_count_as_none(text: str) -> None:
    assert is_placeholder(text)


@pytest.mark.parametrize("text", ["None of the above", "[None]", "no inputs", "..."])
def test_an_input_that_is_only_like_a_placeholder_is_text(text: str) -> None:
    assert not is_placeholder(text)


def test_the_content_id_is_the_hash_of_the_stored_messages() -> None:
    messages = _turns("u:é", "a:A")
    text = '[{"role":"user","content":"é"},{"role":"assistant","content":"A"}]'
    assert messages_json(messages) == text
    assert content_id(messages) == hashlib.sha256(text.encode()).hexdigest()[:32]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_stored_messages_are_what_the_json_library_writes(texts: list[str]) -> None:
    messages = [Message("user", f'{text}"\\\n\x07\x7f\u2028') for text in texts]
    plain = [{"role": "user", "content": message.content} for message in messages]
    assert messages_json(messages) == json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def test_the_content_id_tells_roles_borders_and_copies_apart() -> None:
    conversations = [
        _turns("u:ab", "a:c"),
        _turns("u:a", "a:bc"),
        _turns("a:ab", "u:c"),
        _turns("s:ab", "a:c"),
    ]
    ids = {content_id(messages) for messages in conversations} | {content_id(conversations[0], copy=2)}
    assert len(ids) == 5


def test_a_megabyte_of_end_markers_is_cut_at_once() -> None:
    began = time.process_time()
    assert _kept("u:Q", "a:A" + "</s> <|im_end|>\n" * 60_000) == ["u:Q", "a:A"]
    assert time.process_time() - began < 5
