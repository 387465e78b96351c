import pytest

from clusterucb_core.export.exchanges import alternates, exchange_of, survey


def turns(*texts):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[text[0]], "content": text[2:]} for text in texts]


@pytest.mark.parametrize(
    ("found", "system", "pairs"),
    [
        (turns("u:one", "a:two"), "", [("one", "two")]),
        (turns("s:S", "u:one", "a:two", "u:three", "a:four"), "S", [("one", "two"), ("three", "four")]),
        (turns("u:one", "u:two", "a:three", "s:late"), "late", [("one\n\ntwo", "three")]),
        (turns("s:S", "u:one", "s:T", "a:two"), "S\n\nT", [("one", "two")]),
        (turns("a:one", "u:two", "a:three"), "", [("", "one"), ("two", "three")]),
        (turns("u:one", "a:two", "u:three"), "", [("one", "two")]),
    ],
)
def test_turns_become_pairs(found, system, pairs):
    exchange = exchange_of(found)
    assert (exchange.system, exchange.pairs) == (system, pairs)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (turns("u:", "a:"), True),
        (turns("s:", "u:", "a:", "u:", "a:"), True),
        (turns("u:", "a:", "u:"), False),
        (turns("a:", "u:", "a:"), False),
        (turns("u:", "u:", "a:"), False),
        (turns("u:", "s:", "a:"), False),
        (turns("s:", "s:", "u:", "a:"), False),
        (turns("s:"), False),
        ([], False),
    ],
)
def test_alternating_is_at_most_one_system_message_then_user_and_assistant(found, wanted):
    assert alternates(found) is wanted


def test_a_survey_counts_conversations():
    found = survey(
        [turns("u:1", "a:2"), turns("s:S", "u:1", "a:2", "u:3", "a:4"), turns("u:1", "u:2", "a:3")]
    )
    assert (found.systems, found.histories, found.reshaped) == (1, 1, 1)
