"""Length-sorted batches under a budget of padded tokens."""

import numpy as np

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.records import IntArray


def plan_batches(lengths: IntArray, *, max_batch_tokens: int) -> list[IntArray]:
    """Group samples of similar length so that padding stays small.

    Args:
        lengths: tokens of each sample, integers [n].
        max_batch_tokens: the most padded tokens (batch size x longest sample) of one batch; a sample longer
            than that forms a batch of its own.

    Returns:
        Index arrays that cover 0..n-1 once, sorted by (length, index); the same for the same lengths.

    Raises:
        InvalidConfig: `max_batch_tokens` is below 1.
    """
    if max_batch_tokens < 1:
        raise InvalidConfig(f"max_batch_tokens={max_batch_tokens} holds no token; set it to 1 or more")
    order = np.argsort(lengths, kind="stable")
    batches: list[IntArray] = []
    start = 0
    for stop, index in enumerate(order):
        # in this order the newcomer is the longest
        if stop > start and (stop + 1 - start) * int(lengths[index]) > max_batch_tokens:
            batches.append(order[start:stop])
            start = stop
    return [*batches, order[start:]] if len(order) else batches
