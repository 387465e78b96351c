"""What one forward pass tells of samples: final hidden states, and the gradient of the loss there.

The error of a token is the gradient of its loss w.r.t. the final hidden state h:
`e = W^T (softmax(W h) - onehot(y))`. It takes the forward pass and one product with the head, and no backward
pass through the model. The mean of outer(h, e) over a sample's tokens is the gradient of a square matrix put
in front of the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from clusterucb_core.features.hooks import evaluating
from clusterucb_core.features.losses import (
    LossModel,
    at_positions,
    head_logits,
    hidden_width,
    loss_model,
    model_inputs,
    sample_means,
    token_losses,
)
from clusterucb_core.features.projections import Projector, RollSketch
from clusterucb_core.features.token_rows import PaddedBatch, TokenLimits, TokenRow, pad_batch

HEAD_POSITIONS = 1024  # so many logits rows are held at once
OUTER_ENTRIES = 2**20  # so many entries of an outer product belong to one block of the sketch
HELD_ENTRIES = 2**22  # so many entries of outer products are held at once


@dataclass(frozen=True)
class ForwardParts:
    """What the forward pass of b samples gave; means are over supervised positions.

    `state` [b, h], the mean final hidden state; `error` [b, h], the mean error; `outer` [b, width], the
    sketch of the mean outer product of state and error, with zeros at its end where that has fewer entries;
    `losses` [b].
    """

    state: Tensor
    error: Tensor
    outer: Tensor
    losses: Tensor


@dataclass(frozen=True)
class _Positions:
    """States, errors [m, h] and losses [m] at the supervised positions."""

    states: Tensor
    errors: Tensor
    losses: Tensor


class LastLayer:
    """Runs one model forward. One thread at a time may use a model.

    Args of the constructor: `model`, a causal language model, with an adapter or without; `width` of the
    sketch of outer products; `seed` of that sketch. It raises InvalidModel where there is no output head.
    """

    def __init__(self, model: nn.Module, *, width: int, seed: int) -> None:
        self._model = model
        self._parts: LossModel = loss_model(model)
        self.width = width
        self.hidden = hidden_width(model)
        wide = any(parameter.dtype == torch.float64 for parameter in model.parameters())
        self._dtype = torch.float64 if wide else torch.float32
        self._projector = Projector(RollSketch(dim=width, seed=seed), self._parts.device, self._dtype)

    @property
    def limits(self) -> TokenLimits:
        """What the model can read."""
        return self._parts.limits

    def parts(self, samples: Sequence[TokenRow]) -> ForwardParts:
        """Return what the forward pass of one batch of usable samples gives, in their order."""
        with evaluating(self._model), torch.inference_mode(mode=False), torch.no_grad():
            batch = pad_batch(samples, self._parts.device)
            apart = self._parts.body is not None
            found = _from_body(self._parts, batch) if apart else _from_whole(self._parts, batch)
            states, errors = found.states.to(self._dtype), found.errors.to(self._dtype)
            return ForwardParts(
                state=sample_means(states, batch),
                error=sample_means(errors, batch),
                outer=self._outer(states, errors, batch),
                losses=sample_means(found.losses, batch),
            )

    def _outer(self, states: Tensor, errors: Tensor, batch: PaddedBatch) -> Tensor:
        """Sketch each sample's mean outer product [h * h], a block of its rows at a time."""
        hidden, counts = states.shape[1], batch.counts.tolist()
        pairs = list(zip(states.split(counts), errors.split(counts), counts, strict=True))
        out = torch.zeros(len(pairs), self.width, device=states.device, dtype=self._dtype)
        # blocks depend on the model alone: they name the random signs
        rows = max(1, OUTER_ENTRIES // hidden)
        group = max(1, HELD_ENTRIES // (rows * hidden))
        for start, first in product(range(0, hidden, rows), range(0, len(pairs), group)):
            some = pairs[first : first + group]
            block = torch.stack([h[:, start : start + rows].T @ e / count for h, e, count in some]).flatten(1)
            place = out[first : first + group]
            if hidden * hidden <= self.width:
                place[:, start * hidden : start * hidden + block.shape[1]] = block
            else:
                self._projector.add(f"outer:{start}", block, place)
        return out


def _from_body(parts: LossModel, batch: PaddedBatch) -> _Positions:
    """Run the body, then the head at the supervised positions alone."""
    assert parts.body is not None, "this model's body and head lie apart"
    every = parts.body(**model_inputs(parts, batch)).last_hidden_state
    states = at_positions(every, batch)
    errors: list[Tensor] = []
    losses: list[Tensor] = []
    for chunk, targets in zip(states.split(HEAD_POSITIONS), batch.targets.split(HEAD_POSITIONS), strict=True):
        with torch.enable_grad():
            leaf = chunk.detach().requires_grad_(True)
            found = token_losses(head_logits(parts, leaf), targets)
            errors.append(torch.autograd.grad(found.sum(), leaf)[0])
        losses.append(found.detach())
    return _Positions(states, torch.cat(errors), torch.cat(losses))


def _from_whole(parts: LossModel, batch: PaddedBatch) -> _Positions:
    """Run a model whose head cannot be called by itself, and start the graph at the head's input."""
    cut: list[Tensor] = []

    def start_graph(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        torch.set_grad_enabled(True)
        cut.append(inputs[0].detach().requires_grad_(True))
        return (cut[-1], *inputs[1:])

    handle = parts.output.register_forward_pre_hook(start_graph)
    try:
        logits = parts.whole(**model_inputs(parts, batch)).logits
        losses = token_losses(at_positions(logits, batch), batch.targets)
        (gradient,) = torch.autograd.grad(losses.sum(), cut[-1])
    finally:
        handle.remove()
        torch.set_grad_enabled(False)
    return _Positions(at_positions(cut[-1].detach(), batch), at_positions(gradient, batch), losses.detach())
