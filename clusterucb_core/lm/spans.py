"""Where the assistant's turns lie in a rendered conversation, for any chat template.

Templates do not say which characters belong to which turn. They are found by rendering the conversation again
with one turn's content replaced by a probe: what stands before the probe is everything up to that content,
what stands after it is everything from its end. A template that rewrites earlier turns is covered, since the
whole conversation is rendered each time; where the two texts do not fit together the sample is refused.
"""

from collections.abc import Sequence
from dataclasses import replace

from clusterucb_core.lm.templates import ChatFormat, RenderError, render
from clusterucb_core.records import Message

PROBE = "x7f3a9c51d2e8b604x"

Span = tuple[int, int]


def assistant_spans(chat: ChatFormat, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """Return the rendered conversation and the characters of each assistant turn.

    A span begins where the model would begin to write (after the generation prompt, else at the content) and
    ends after the special token that closes the turn, or after its visible closing text, or with the content.

    Returns:
        The text and one (start, end) a turn, in order, not overlapping.

    Raises:
        RenderError: the template refuses the conversation, or a turn cannot be located with certainty.
    """
    text = render(chat, messages)
    spans: list[Span] = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        span = _turn_span(chat, messages, index, text)
        if spans and span[0] < spans[-1][1]:
            raise _unstable(index, "its text overlaps an earlier turn")
        spans.append(span)
    return text, spans


def opening_text(chat: ChatFormat, messages: Sequence[Message]) -> str:
    """Return the conversation up to where the assistant's next turn begins.

    Args:
        chat: tokenizer and template.
        messages: the turns before the assistant's.

    Raises:
        RenderError: the template refuses the conversation.
    """
    prompt = _generation_prompt(chat, messages)
    if prompt is not None:
        return prompt
    before, _ = _around_probe(chat, [*messages, Message("assistant", PROBE)], len(messages))
    return before


def _turn_span(chat: ChatFormat, messages: Sequence[Message], index: int, text: str) -> Span:
    probed = [*messages]
    probed[index] = replace(messages[index], content=PROBE)
    before, after = _around_probe(chat, probed, index)
    if not text.endswith(after):
        raise _unstable(index, "the text behind it depends on its content")
    content_end = len(text) - len(after)
    start = _turn_start(chat, messages[:index], text, before)
    if start is None or start > content_end:
        raise _unstable(index, "the text before it depends on its content")
    return start, content_end + len(_closing(chat, probed[: index + 1], len(messages), after))


def _turn_start(chat: ChatFormat, earlier: Sequence[Message], text: str, before: str) -> int | None:
    prompt = _generation_prompt(chat, earlier, known=before)
    if prompt is not None and text.startswith(prompt) and before.startswith(prompt):
        return len(prompt)
    if text.startswith(before):
        return len(before)
    # The content changes what precedes it (a template that moves reasoning about): trust the prompt alone.
    return len(prompt) if prompt is not None and text.startswith(prompt) else None


def _generation_prompt(chat: ChatFormat, earlier: Sequence[Message], known: str | None = None) -> str | None:
    """Return the text with the generation prompt, or None where the template adds none."""
    if not earlier:
        return None
    try:
        opened = render(chat, earlier, generation_prompt=True)
        if opened == known:
            return opened
        closed = render(chat, earlier)
    except RenderError:
        return None
    return opened if opened != closed and opened.startswith(closed) else None


def _closing(chat: ChatFormat, until: Sequence[Message], n_messages: int, after: str) -> str:
    """Return the text that closes the turn at the end of `until`, without the white space behind it."""
    own = after
    if len(until) < n_messages:
        _, last = _around_probe(chat, until, len(until) - 1)
        own = _shared_start(last, after)
    special = chat.control.search(own)
    return own[: special.end()] if special else own.rstrip()


def _shared_start(first: str, second: str) -> str:
    pairs = zip(first, second, strict=False)
    length = next(
        (at for at, (left, right) in enumerate(pairs) if left != right), min(len(first), len(second))
    )
    return first[:length]


def _around_probe(chat: ChatFormat, messages: Sequence[Message], index: int) -> tuple[str, str]:
    parts = render(chat, messages).split(PROBE)
    if len(parts) != 2:
        raise _unstable(index, f"its content appears {len(parts) - 1} times in the rendered text")
    return parts[0], parts[1]


def _unstable(index: int, problem: str) -> RenderError:
    return RenderError(
        "unstable_template", f"turn {index + 1} (assistant) cannot be located in the rendered text: {problem}"
    )
