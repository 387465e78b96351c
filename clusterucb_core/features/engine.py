"""One batch of samples to features: hooks where they are exact, one backward pass a sample where not."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clusterucb_core.features.adam import AdamMoments
from clusterucb_core.features.hooks import Capture, capturing, evaluating, plan_hooks
from clusterucb_core.features.losses import LossModel, loss_model, sample_losses
from clusterucb_core.features.projections import Projection
from clusterucb_core.features.sinks import feature_recipe, trainable_parameters
from clusterucb_core.features.token_rows import TokenLimits, TokenRow, pad_batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchGradients:
    """What one batch gave.

    `features` [b, width]; `losses` [b]; `largest` [b], the largest absolute entry of each raw gradient.
    """

    features: Tensor
    losses: Tensor
    largest: Tensor


class GradientEngine:
    """Computes per-sample features of one model. One thread at a time may use a model.

    Args of the constructor: `model`, a PEFT model with LoRA; `moments`, Adam moments [p] or None for plain
    gradients; `projection`, or None to keep all p entries.
    """

    def __init__(
        self, model: nn.Module, moments: AdamMoments | None = None, projection: Projection | None = None
    ) -> None:
        self._model = model
        self._parts: LossModel = loss_model(model)
        self._trainable = trainable_parameters(model)
        self._plan = plan_hooks(model, self._trainable)
        self._recipe = feature_recipe(self._trainable, moments, projection, device=self._parts.device)
        self._hooks_are_exact = not self._plan.unclaimed
        if not self._hooks_are_exact:
            _log_fallback(self._plan.unclaimed)

    @property
    def limits(self) -> TokenLimits:
        """What the model can read."""
        return self._parts.limits

    @property
    def width(self) -> int:
        """Entries of a feature."""
        return self._recipe.width

    @property
    def hooks_are_exact(self) -> bool:
        """Whether hooks claim every trainable parameter; otherwise each sample has its own backward pass."""
        return self._hooks_are_exact

    def gradients(self, samples: Sequence[TokenRow]) -> BatchGradients:
        """Return the features of one batch.

        Args:
            samples: usable samples (see `token_rows.unusable_reason`), at least one.

        Returns:
            Features, losses and largest entries, in the order of the samples.
        """
        with evaluating(self._model), torch.inference_mode(mode=False), torch.enable_grad():
            if self._hooks_are_exact:
                hooked = self._hooked(samples)
                if hooked is not None:
                    return hooked
            return self._looped(samples)

    def one_by_one(self, samples: Sequence[TokenRow]) -> BatchGradients:
        """Return the same by plain autograd, one backward pass a sample: slow, exact for any parameter."""
        with evaluating(self._model), torch.inference_mode(mode=False), torch.enable_grad():
            return self._looped(samples)

    def _hooked(self, samples: Sequence[TokenRow]) -> BatchGradients | None:
        batch = pad_batch(samples, self._parts.device)
        sink = self._recipe.sink(len(samples))
        capture = Capture(self._plan, (len(samples), batch.input_ids.shape[1]), sink)
        with capturing(self._plan, self._trainable, self._parts.embedding, capture):
            losses = sample_losses(self._parts, batch)
            losses.sum().backward()
        missed = capture.missed()
        if missed:
            self._hooks_are_exact = False
            _log_fallback(missed)
            return None
        return BatchGradients(sink.features, losses.detach(), sink.largest)

    def _looped(self, samples: Sequence[TokenRow]) -> BatchGradients:
        rows = [self._single(sample) for sample in samples]
        return BatchGradients(
            features=torch.cat([row.features for row in rows]),
            losses=torch.cat([row.losses for row in rows]),
            largest=torch.cat([row.largest for row in rows]),
        )

    def _single(self, sample: TokenRow) -> BatchGradients:
        losses = sample_losses(self._parts, pad_batch([sample], self._parts.device))
        parameters = list(self._trainable.values())
        gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True, materialize_grads=True)
        sink = self._recipe.sink(1)
        for name, gradient in zip(self._trainable, gradients, strict=True):
            # a copy: the sink works in place, and autograd may return one tensor twice
            sink.add(name, gradient.to(self._recipe.dtype, copy=True).reshape(1, -1))
        return BatchGradients(sink.features, losses.detach(), sink.largest)


def _log_fallback(names: Sequence[str]) -> None:
    logger.warning(
        "no hook gives exact per-sample gradients of %d parameters (first: %s); "
        "each sample gets a backward pass of its own, which is slower",
        len(names),
        names[0],
    )
