from clusterucb_core.prompts import normalise, normalised_prompt
from clusterucb_core.records import Message


def test_case_and_white_space_do_not_make_two_texts_differ() -> None:
    assert normalise("  What\tIS\n\n2 + 2 ? ") == "what is 2 + 2 ?"


def test_unicode_white_space_counts_as_white_space() -> None:
    assert normalise("a\u2028b\u00a0c") == "a b c"


def test_the_prompt_is_every_turn_before_the_first_answer() -> None:
    turns = [
        Message("system", "Be BRIEF"),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "More"),
    ]
    assert normalised_prompt(turns) == "be brief\nhi"


def test_a_newline_inside_a_turn_is_not_the_border_of_two_turns() -> None:
    one = [Message("user", "a\nb"), Message("assistant", "c")]
    two = [Message("system", "a"), Message("user", "b"), Message("assistant", "c")]
    assert normalised_prompt(one) != normalised_prompt(two)
