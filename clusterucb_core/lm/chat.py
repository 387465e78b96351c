"""Conversations to tokens, with loss on the assistant's turns only."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast, get_args

import numpy as np

from clusterucb_core.errors import InvalidPool
from clusterucb_core.lm.spans import Span, assistant_spans, opening_text
from clusterucb_core.lm.templates import ChatFormat, RenderError, chat_format
from clusterucb_core.lm.windows import NO_TURN, fit_window
from clusterucb_core.records import Exclusion, IntArray, Message, Role, TokenizedSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ChatFormat",
    "Tokenized",
    "chat_format",
    "exchange_text",
    "prompt_text",
    "tokenize",
    "tokenize_batch",
    "tokenize_messages",
]

STAGE = "tokenize"

# Private-use characters around a special token that a sample's own text contains: see `_encode_marked`.
_OPEN, _CLOSE = "\ue0f1", "\ue0f2"
_MARKED = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}|[{_OPEN}{_CLOSE}]")


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A tokenized sample, and whether it was cut to the length limit."""

    sample: TokenizedSample
    truncated: bool


@dataclass(frozen=True, slots=True)
class _Encoding:
    """Token ids [t] with the characters [t] at which each token starts and ends."""

    ids: IntArray
    starts: IntArray
    ends: IntArray


def prompt_text(chat: ChatFormat, messages: Sequence[Message]) -> str:
    """Return the text that the assistant's next turn continues.

    Args:
        chat: tokenizer and template.
        messages: the turns before it; a final assistant turn is left out.

    Returns:
        The rendered turns and the assistant's header. A BOS is in it only where the template writes one.

    Raises:
        RenderError: the template refuses the conversation.
    """
    turns = messages[:-1] if messages and messages[-1].role == "assistant" else messages
    return opening_text(chat, turns)


def exchange_text(chat: ChatFormat, messages: Sequence[Message]) -> tuple[str, str] | None:
    """Return the text before the last assistant turn, and that turn as a model would write it.

    The turn ends with the token that closes it, so both together are what `tokenize` takes the loss of, but
    for special tokens that a message spells out, which stay special tokens here.

    Args:
        chat: tokenizer and template.
        messages: the turns, the assistant's last.

    Returns:
        The two texts; None where the template refuses the conversation or does not set the turn apart.
    """
    try:
        text, spans = assistant_spans(chat, messages)
    except RenderError:
        return None
    start, end = spans[-1]
    return text[:start], text[start:end]


def tokenize_messages(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Sequence[Mapping[str, str]]],
    *,
    max_length: int,
    template: str | None = None,
) -> list[TokenizedSample]:
    """Return conversations of one's own as tokens with labels, all of them and in their order.

    Args:
        tokenizer: a fast tokenizer.
        conversations: lists of turns such as `{"role": "user", "content": "Hello"}`, with an answer in each.
        max_length: limit in tokens; longer prompts are cut from the left.
        template: as `chat_format` takes it.

    Returns:
        Records as `tokenize` gives them; `sample_id` is the place in the list.

    Raises:
        InvalidPool: a conversation has another role, or no token to learn from.
        InvalidConfig, InvalidModel: as `chat_format`.
    """
    pairs = [(str(place), _messages(place, turns)) for place, turns in enumerate(conversations)]
    outcomes = tokenize_batch(chat_format(tokenizer, template), pairs, max_length=max_length)
    samples = [outcome.sample for outcome in outcomes if isinstance(outcome, Tokenized)]
    excluded = [outcome for outcome in outcomes if isinstance(outcome, Exclusion)]
    if excluded:
        first = excluded[0]
        raise InvalidPool(
            f"{len(excluded)} of {len(outcomes)} conversations cannot be used, the first is number "
            f"{first.sample_id} ({first.reason}: {first.detail}); leave them out"
        )
    return samples


def tokenize(
    chat: ChatFormat, sample_id: str, messages: Sequence[Message], *, max_length: int
) -> TokenizedSample | Exclusion:
    """Return one conversation as tokens, or why it cannot be used.

    Loss is taken on each assistant turn, from where the model would begin to write to the token that ends the
    turn; a token that straddles the beginning counts as the assistant's. A BOS that the tokenizer adds stands
    once at the front. Special tokens spelt out in a message are encoded as plain text.

    Args:
        chat: tokenizer and template.
        sample_id: id that the result carries.
        messages: the turns.
        max_length: limit in tokens; see `windows.fit_window` for what is cut.

    Returns:
        Token ids and labels, int64 [t], or an exclusion with the reason `template_error`, `unstable_template`
        or `no_supervised_token`.
    """
    (outcome,) = tokenize_batch(chat, [(sample_id, messages)], max_length=max_length)
    return outcome.sample if isinstance(outcome, Tokenized) else outcome


def tokenize_batch(
    chat: ChatFormat, conversations: Iterable[tuple[str, Sequence[Message]]], *, max_length: int
) -> list[Tokenized | Exclusion]:
    """Return the outcome of each conversation, in order; the text is encoded in one call.

    Args:
        chat: tokenizer and template.
        conversations: pairs of a sample id and its turns.
        max_length: limit in tokens.
    """
    rendered = [(sample_id, _rendered(chat, sample_id, messages)) for sample_id, messages in conversations]
    texts = [outcome[0] for _, outcome in rendered if not isinstance(outcome, Exclusion)]
    encodings = iter(_encode(chat, texts))
    outcomes: list[Tokenized | Exclusion] = []
    for sample_id, outcome in rendered:
        if isinstance(outcome, Exclusion):
            outcomes.append(outcome)
        else:
            outcomes.append(
                _finish(chat, sample_id, next(encodings), spans=outcome[1], max_length=max_length)
            )
    return outcomes


def _messages(place: int, turns: Sequence[Mapping[str, str]]) -> list[Message]:
    unknown = {turn["role"] for turn in turns} - set(get_args(Role))
    if unknown:
        raise InvalidPool(
            f"conversation number {place} has the role {min(unknown)!r}; known are "
            f"{', '.join(get_args(Role))}"
        )
    return [Message(cast("Role", turn["role"]), turn["content"]) for turn in turns]


def _rendered(
    chat: ChatFormat, sample_id: str, messages: Sequence[Message]
) -> tuple[str, list[Span]] | Exclusion:
    if not any(message.role == "assistant" for message in messages):
        return Exclusion(sample_id, STAGE, "no_supervised_token", "the conversation has no assistant turn")
    marked = [replace(message, content=_mark(chat, message.content)) for message in messages]
    try:
        return assistant_spans(chat, marked)
    except RenderError as failure:
        return Exclusion(sample_id, STAGE, failure.reason, str(failure))


def _finish(
    chat: ChatFormat, sample_id: str, encoding: _Encoding, *, spans: list[Span], max_length: int
) -> Tokenized | Exclusion:
    turns = _turn_of_token(chat, encoding, spans)
    ids, turns, head = _with_head(chat, encoding.ids, turns)
    window = fit_window(turns, head=head, max_length=max_length)
    if not window.supervised.any():
        detail = f"no token of {len(ids)} carries loss within max_length={max_length}"
        return Exclusion(sample_id, STAGE, "no_supervised_token", detail)
    kept = ids[window.kept]
    labels = np.where(window.supervised, kept, -100)
    return Tokenized(TokenizedSample(sample_id, kept, labels), window.truncated)


def _turn_of_token(chat: ChatFormat, encoding: _Encoding, spans: list[Span]) -> IntArray:
    """Return the number of the assistant turn [t] that each token belongs to, `NO_TURN` for none."""
    turns = np.full(encoding.ids.size, NO_TURN, dtype=np.int64)
    if turns.size == 0:
        return turns
    # Some tokenizers leave blanks out of the offsets: a token reaches back to the end of the one before.
    reached = np.concatenate([[0], np.maximum.accumulate(encoding.ends)[:-1]])
    begins = np.minimum(encoding.starts, reached)
    special = np.isin(encoding.ids, list(chat.special_ids))
    for number, (start, end) in enumerate(spans):
        inside = (encoding.ends > start) & (begins < end)
        # A header token may swallow blanks that follow it, even those that open the content.
        turns[inside & ~(special & (begins < start))] = number
    return turns


def _with_head(chat: ChatFormat, ids: IntArray, turns: IntArray) -> tuple[IntArray, IntArray, int]:
    """Return ids and turns with the tokenizer's head in front exactly once, and the length of that head."""
    bos = chat.tokenizer.bos_token_id
    has_bos = ids.size > 0 and bos is not None and int(ids[0]) == bos
    n_head = len(chat.head)
    if n_head and tuple(ids[:n_head].tolist()) == chat.head:
        return ids, turns, n_head
    if has_bos:
        return ids, turns, 1
    ids = np.concatenate([np.array(chat.head, dtype=np.int64), ids])
    return ids, np.concatenate([np.full(n_head, NO_TURN, dtype=np.int64), turns]), n_head


def _mark(chat: ChatFormat, content: str) -> str:
    """Return a message's text with each special token that it spells out wrapped in markers."""
    if _OPEN in content or _CLOSE in content:
        content = content.replace(_OPEN, "").replace(_CLOSE, "")
    return chat.control.sub(rf"{_OPEN}\g<0>{_CLOSE}", content)


def _encode(chat: ChatFormat, texts: list[str]) -> list[_Encoding]:
    plain = [text for text in texts if _OPEN not in text]
    encoded = iter(_encode_plain(chat, plain))
    return [_encode_marked(chat, text) if _OPEN in text else next(encoded) for text in texts]


def _encode_plain(chat: ChatFormat, texts: list[str], *, as_text: bool = False) -> list[_Encoding]:
    if not texts:
        return []
    batch = chat.tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        split_special_tokens=as_text,
        truncation=False,
        padding=False,
        verbose=False,
    )
    return [
        _encoding(ids, offsets)
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def _encoding(ids: list[int], offsets: list[tuple[int, int]]) -> _Encoding:
    edges = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    return _Encoding(np.array(ids, dtype=np.int64), edges[:, 0], edges[:, 1])


def _encode_marked(chat: ChatFormat, text: str) -> _Encoding:
    """Encode a text in pieces, so that a marked special token becomes plain text and no control token.

    Without this, a sample that quotes `</s>` or holds the HTML tag `<s>` would end its turn in the middle.
    """
    plain: list[str] = []
    marked: list[str] = []
    starts: list[int] = []
    position = 0
    for found in _MARKED.finditer(text):
        plain.append(text[position : found.start()])
        marked.append(found.group(1) or "")
        starts += [position, found.start(1)]
        position = found.end()
    plain.append(text[position:])
    starts.append(position)
    # in two calls, whatever their number: a hostile text may hold a hundred thousand
    between = _encode_plain(chat, plain)
    distinct = list(dict.fromkeys(marked))
    tokens = dict(zip(distinct, _encode_plain(chat, distinct, as_text=True), strict=True))
    pieces = [between[0]]
    for token, after in zip(marked, between[1:], strict=True):
        pieces += [tokens[token], after]
    return _Encoding(
        np.concatenate([piece.ids for piece in pieces]),
        np.concatenate([piece.starts + at for piece, at in zip(pieces, starts, strict=True)]),
        np.concatenate([piece.ends + at for piece, at in zip(pieces, starts, strict=True)]),
    )
