"""Tokenised samples as the gradient engine sees them: what makes one unusable, and padded batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from clusterucb_core.errors import InvalidModel
from clusterucb_core.records import IntArray

IGNORED = -100

Reason = Literal[
    "no_supervised_token",
    "too_long",
    "out_of_memory",
    "non_finite_loss",
    "non_finite_gradient",
    "zero_gradient",
]


class TokenRow(Protocol):
    """Anything with token ids [t] and labels [t] (-100 where no loss is taken)."""

    @property
    def input_ids(self) -> IntArray:
        """Token ids [t]."""
        ...

    @property
    def labels(self) -> IntArray:
        """Labels [t], -100 where masked."""
        ...


@dataclass(frozen=True)
class TokenLimits:
    """What a model can read: ids below `vocabulary`, at most `max_positions` tokens (None: no limit)."""

    vocabulary: int
    max_positions: int | None


@dataclass(frozen=True)
class PaddedBatch:
    """Right-padded samples on one device.

    `input_ids` [b, t]; `attention_mask` [b, t]; `positions` [m] indexes the flattened [b * t] positions whose
    next token is supervised; `targets` [m] holds that token, `rows` [m] its sample, `counts` [b] how many.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    targets: Tensor
    rows: Tensor
    counts: Tensor


def supervised_tokens(sample: TokenRow) -> int:
    """Count the labels that give a loss; nothing precedes position 0, so its label never does."""
    return int(np.count_nonzero(np.asarray(sample.labels)[1:] != IGNORED))


def unusable_reason(sample: TokenRow, limits: TokenLimits) -> tuple[Reason, str] | None:
    """Say why a sample cannot have a gradient, or return None where it can.

    Args:
        sample: token ids and labels.
        limits: what the model can read.

    Returns:
        A reason and a detail, or None.

    Raises:
        ValueError: labels and ids differ in length.
        InvalidModel: an id or label lies outside the vocabulary: the tokenizer belongs to another model.
    """
    ids, labels = np.asarray(sample.input_ids), np.asarray(sample.labels)
    if ids.ndim != 1 or ids.shape != labels.shape:
        raise ValueError(f"input_ids {ids.shape} and labels {labels.shape} must be vectors of one length")
    if supervised_tokens(sample) == 0:
        return "no_supervised_token", f"none of {len(ids)} tokens carries a label after position 0"
    if limits.max_positions is not None and len(ids) > limits.max_positions:
        return "too_long", f"{len(ids)} tokens, the model reads at most {limits.max_positions}"
    used = np.concatenate([ids, labels[labels != IGNORED]])
    if used.min() < 0 or used.max() >= limits.vocabulary:
        raise InvalidModel(
            f"token ids from {used.min()} to {used.max()} do not fit the model's vocabulary of "
            f"{limits.vocabulary}; use the tokenizer that belongs to the model"
        )
    return None


def pad_batch(samples: Sequence[TokenRow], device: torch.device) -> PaddedBatch:
    """Pad samples on the right, each with its own last token.

    A shared pad token with a broken embedding would reach every row, since a masked key still multiplies: 0
    times NaN is NaN. A row's own token brings nothing that the row does not hold.

    Args:
        samples: usable samples, at least one.
        device: where the tensors go.

    Returns:
        The padded batch.
    """
    lengths = np.array([len(sample.input_ids) for sample in samples])
    ids = np.empty((len(samples), int(lengths.max())), dtype=np.int64)
    next_tokens = np.full_like(ids, IGNORED)
    for row, sample in enumerate(samples):
        ids[row, : lengths[row]] = sample.input_ids
        ids[row, lengths[row] :] = ids[row, lengths[row] - 1]
        next_tokens[row, : lengths[row] - 1] = sample.labels[1:]
    positions = np.flatnonzero(next_tokens != IGNORED)
    rows = positions // ids.shape[1]
    return PaddedBatch(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)).to(
            device
        ),
        positions=torch.from_numpy(positions).to(device),
        targets=torch.from_numpy(next_tokens.ravel()[positions]).to(device),
        rows=torch.from_numpy(rows).to(device),
        counts=torch.from_numpy(np.bincount(rows, minlength=len(samples))).to(device),
    )
