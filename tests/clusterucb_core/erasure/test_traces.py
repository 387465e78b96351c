import json

import pytest

from clusterucb_core.erasure.traces import shows_trace, traces_of

PROMPT = 'Müller said:\n"A train leaves Köln at nine and arrives in Bonn at ten" — how long does it take?'
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant that answers in one short sentence only."},
    {"role": "user", "content": PROMPT},
    {"role": "assistant", "content": "60"},
]
TRACES = traces_of([MESSAGES])
ESCAPED = json.dumps({"prompt": PROMPT, "completion": "60"})


@pytest.mark.parametrize(
    "raw",
    [
        PROMPT,
        ESCAPED,
        json.dumps({"prompt": PROMPT}, ensure_ascii=False),
        ESCAPED[:80],
        f'"{PROMPT.replace(chr(34), chr(34) * 2)}",60,',
        "{broken " + PROMPT.upper()[14:],
        json.dumps({"tree": [{"text": "something else"}, {"text": json.dumps(PROMPT)}]}),
    ],
    ids=["plain", "escaped", "unescaped", "cut", "csv", "beginning lost", "escaped twice"],
)
def test_a_row_that_holds_a_turn_or_a_long_part_of_it_is_a_trace(raw):
    assert shows_trace(TRACES, raw)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "60",
        '{"prompt": "What is 30 + 30?", "completion": "60"}',
        MESSAGES[0]["content"],
        "A train leaves Köln at ten and arrives in Bonn at eleven",
    ],
    ids=["nothing", "a short answer", "another sample", "the system turn", "other words"],
)
def test_what_other_samples_say_too_is_none(raw):
    assert not shows_trace(TRACES, raw)


def test_short_turns_count_only_all_together():
    traces = traces_of([[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "Four"}]])
    assert shows_trace(traces, '{"q": "2 + 2?", "a": "four')
    assert not shows_trace(traces, '{"q": "2 + 2?", "a": "five"}')


def test_a_long_turn_without_blanks_is_a_trace():
    traces = traces_of([[{"role": "user", "content": "ベルリンからミュンヘンまでどのくらいかかりますか"}]])
    assert shows_trace(traces, '{"p": "ベルリンからミュンヘンまでどのくらいかかりますか"')


def test_without_texts_there_is_no_trace():
    assert not shows_trace(traces_of([]), PROMPT)
    assert not shows_trace(traces_of([[{"role": "user", "content": "?!"}]]), PROMPT)
