"""The loss of a model on each test sample: the mean cross-entropy of its supervised tokens."""

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from clusterucb_core.errors import InvalidTarget, TrainingDiverged
from clusterucb_core.pacing import Pace, advance
from clusterucb_core.records import FloatArray, IntArray, TokenizedSample

if TYPE_CHECKING:
    import torch  # imported where it is used: the settings beside it are read by commands that load no model
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_MASKED = -100


def test_losses(
    model: "PreTrainedModel", samples: Sequence[TokenizedSample], *, max_batch_tokens: int
) -> FloatArray:
    """Return the mean loss of each sample over its supervised tokens.

    Args:
        model: a causal language model, with or without adapters, on the device where it shall run.
        samples: the samples; a label of -100 is masked.
        max_batch_tokens: padded tokens in a batch; a longer sample makes a batch of its own.

    Returns:
        Losses in nats a token, float32 [n], in the order of the samples. The model runs in evaluation mode,
        and each of its modules gets its own mode back.

    Raises:
        InvalidTarget: a sample has no supervised token after its first.
        TrainingDiverged: a loss is not finite.
    """
    supervised = [int((sample.labels[1:] != _MASKED).sum()) for sample in samples]
    if 0 in supervised:
        sample_id = samples[supervised.index(0)].sample_id
        raise InvalidTarget(f"test sample {sample_id} has no supervised token; exclude it before evaluation")
    losses = np.zeros(len(samples), dtype=np.float32)
    pace = Pace(logger, "test loss", "rows", len(samples))
    with evaluation_mode(model):
        for batch in _batches(samples, max_batch_tokens):
            losses[batch] = _batch_losses(model, [samples[i] for i in batch])
            advance(pace, len(batch))
    if not np.isfinite(losses).all():
        first = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise TrainingDiverged(
            f"the loss of test sample {samples[first].sample_id} is {losses[first]}; "
            "the model has diverged: lower the learning rate"
        )
    return losses


@contextmanager
def evaluation_mode(model: "PreTrainedModel") -> Generator[None, None, None]:
    """Put the model into evaluation mode for a block; afterwards each module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _batches(samples: Sequence[TokenizedSample], max_batch_tokens: int) -> Iterator[IntArray]:
    lengths = np.array([len(sample.input_ids) for sample in samples], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")[::-1]
    start = 0
    while start < len(order):
        count = max(1, max_batch_tokens // int(lengths[order[start]]))
        yield order[start : start + count]
        start += count


def _batch_losses(model: "PreTrainedModel", samples: Sequence[TokenizedSample]) -> FloatArray:
    import torch

    input_ids, attention_mask, labels = _padded(samples, next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        chosen = labels[:, 1:] != _MASKED
        # float32 on the supervised positions alone: the full table of logits can be the largest tensor here.
        token_losses = torch.nn.functional.cross_entropy(
            logits[:, :-1][chosen].float(), labels[:, 1:][chosen], reduction="none"
        )
    rows = chosen.nonzero()[:, 0].cpu().numpy()
    sums = np.bincount(rows, weights=token_losses.cpu().numpy(), minlength=len(samples))
    return sums / np.bincount(rows, minlength=len(samples))


def _padded(
    samples: Sequence[TokenizedSample], device: "torch.device"
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    import torch

    width = max(len(sample.input_ids) for sample in samples)
    shape = (len(samples), width)
    input_ids = np.zeros(shape, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, _MASKED, dtype=np.int64)
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        input_ids[row, :length] = sample.input_ids
        attention_mask[row, :length] = 1
        labels[row, :length] = sample.labels
    arrays = (input_ids, attention_mask, labels)
    first, second, third = (torch.from_numpy(array).to(device) for array in arrays)
    return first, second, third
