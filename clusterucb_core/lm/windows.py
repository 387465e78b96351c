"""Which tokens of a conversation are kept under a length limit, and which of them carry loss."""

from dataclasses import dataclass

import numpy as np

from clusterucb_core.records import IntArray

NO_TURN = -1


@dataclass(frozen=True)
class Window:
    """The tokens kept of one conversation.

    Attributes:
        kept: positions [w] in the whole conversation, ascending.
        supervised: bool [w], true where loss is taken.
        truncated: whether tokens that could have mattered were left out.
    """

    kept: IntArray
    supervised: IntArray
    truncated: bool


def fit_window(turns: IntArray, *, head: int, max_length: int) -> Window:
    """Return the window of at most `max_length` tokens that keeps the last answer.

    Tokens behind the last supervised one carry no loss in a causal model and are always left out. Beyond that
    the text is cut from the left, its head (BOS) kept; an assistant turn that this cuts through loses its
    loss. Only where the last answer alone is too long is its end cut, after one token of context.

    Args:
        turns: int [t], the number of the assistant turn that a token belongs to, -1 for none.
        head: tokens at the front that are always kept.
        max_length: limit in tokens, at least 1.
    """
    # Nothing predicts the first token, so it can carry no loss.
    positions = np.flatnonzero(turns[1:] != NO_TURN) + 1
    if positions.size == 0:
        return Window(np.arange(0), np.zeros(0, dtype=bool), truncated=False)
    end = int(positions[-1]) + 1
    if end <= max_length:
        return _window(np.arange(end), turns, truncated=False)
    answer = max(int(np.flatnonzero(turns == turns[end - 1])[0]), 1)
    context = np.arange(head) if head else np.array([answer - 1])
    room = max_length - context.size
    if end - answer >= room:
        kept = np.concatenate([context, np.arange(answer, answer + max(room, 0))])[:max_length]
    elif head:
        kept = np.concatenate([context, np.arange(end - room, end)])
    else:
        kept = np.arange(end - max_length, end)
    return _window(kept, turns, truncated=True)


def _window(kept: IntArray, turns: IntArray, *, truncated: bool) -> Window:
    own = turns[kept]
    supervised = own != NO_TURN
    supervised[0] = False
    jumps = np.flatnonzero(np.diff(kept) > 1) + 1
    cut_at = int(jumps[0]) if jumps.size else 0
    first = int(kept[cut_at])
    if first > 0 and own[cut_at] != NO_TURN and turns[first - 1] == own[cut_at]:
        supervised &= own != own[cut_at]
    return Window(kept, supervised, truncated=truncated)
