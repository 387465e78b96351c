"""One batch of samples to features: hooks where they are exact, replays elsewhere, else sample by sample."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clusterucb_core.features.adam import AdamMoments
from clusterucb_core.features.agreement import relative_error, rounding_tolerance
from clusterucb_core.features.call_sums import CallSums
from clusterucb_core.features.hooks import LinearHooks, evaluating, frozen, own_gradients
from clusterucb_core.features.losses import LossModel, loss_model, read_samples
from clusterucb_core.features.projections import Projection
from clusterucb_core.features.replay import Replays
from clusterucb_core.features.sinks import feature_recipe, trainable_parameters
from clusterucb_core.features.slices import SampleSlices
from clusterucb_core.features.token_rows import TokenLimits, TokenRow, pad_batch
from clusterucb_core.features.ways import Way, WayPlan, plan_ways, ways_summary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchGradients:
    """What one batch gave.

    `features` [b, width]; `losses` [b]; `largest` [b], the largest absolute entry of each raw gradient;
    `states` [b, h], the mean final hidden states over supervised positions.
    """

    features: Tensor
    losses: Tensor
    largest: Tensor
    states: Tensor


class GradientEngine:
    """Computes per-sample features of one model. One thread at a time may use a model.

    Args of the constructor: `model`, a PEFT model with LoRA; `moments`, Adam moments [p] or None for plain
    gradients; `projection`, or None to keep all p entries. It raises InvalidModel, naming the layer, where a
    parameter cannot have per-sample gradients at all.
    """

    def __init__(
        self, model: nn.Module, moments: AdamMoments | None = None, projection: Projection | None = None
    ) -> None:
        self._model = model
        self._parts: LossModel = loss_model(model)
        self._trainable = trainable_parameters(model)
        self._plan: WayPlan | None = plan_ways(model, self._trainable)
        self._recipe = feature_recipe(self._trainable, moments, projection, device=self._parts.device)
        self._tolerance = rounding_tolerance(model)
        self._order_is_proven = False
        _log_plan(self._plan)

    @property
    def limits(self) -> TokenLimits:
        """What the model can read."""
        return self._parts.limits

    @property
    def width(self) -> int:
        """Entries of a feature."""
        return self._recipe.width

    @property
    def ways(self) -> dict[str, Way]:
        """The way that each trainable parameter takes; it may change where a batch shows it to be inexact."""
        if self._plan is None:
            return dict.fromkeys(self._trainable, "one_by_one")
        return self._plan.ways

    @property
    def hooks_are_exact(self) -> bool:
        """Whether hooks claim every trainable parameter."""
        return set(self.ways.values()) == {"hook"}

    def gradients(self, samples: Sequence[TokenRow]) -> BatchGradients:
        """Return the features of one batch.

        Args:
            samples: usable samples (see `token_rows.unusable_reason`), at least one.

        Returns:
            Features, losses and largest entries, in the order of the samples.
        """
        if len(samples) > 1 and len(samples) == max(len(sample.input_ids) for sample in samples):
            # an axis of samples could not be told from one of tokens
            middle = len(samples) // 2
            return _joined([self.gradients(samples[:middle]), self.gradients(samples[middle:])])
        with evaluating(self._model), torch.inference_mode(mode=False), torch.enable_grad():
            while self._plan is not None:
                found = self._batched(self._plan, samples)
                if isinstance(found, BatchGradients):
                    return found
                self._plan = self._weaker_plan(self._plan, found)
            return _joined([self._single(self._parts, sample) for sample in samples])

    def one_by_one(self, samples: Sequence[TokenRow]) -> BatchGradients:
        """Return the same by plain autograd, the model's own forward on one sample at a time: slow, exact."""
        with evaluating(self._model), torch.inference_mode(mode=False), torch.enable_grad():
            return _joined([self._single(self._parts.plain(), sample) for sample in samples])

    def _batched(self, plan: WayPlan, samples: Sequence[TokenRow]) -> BatchGradients | dict[str, str]:
        """Return the features, or the parameters whose gradients are not exact, each with the reason."""
        batch = pad_batch(samples, self._parts.device)
        sink = self._recipe.sink(len(samples))
        sums = CallSums(plan.ways, sink)
        slices = SampleSlices(*batch.input_ids.shape)
        hooks = LinearHooks(plan.hooked, slices, sums)
        replays = Replays(plan.sites, slices, sums)
        with frozen(self._trainable, self._parts.embedding), hooks.attached(), replays.attached():
            read = read_samples(self._parts, batch)
            sums.backward(read.losses.sum())
        replays.reject_differing(self._tolerance)
        missed = sums.missed()
        if missed:
            return missed
        found = BatchGradients(sink.features, read.losses.detach(), sink.largest, read.states)
        if (hooks.flattened or replays.flattened) and not self._is_in_order(samples, found):
            return dict.fromkeys(plan.ways, "its layer sees the tokens of all samples in an order of its own")
        return found

    def _is_in_order(self, samples: Sequence[TokenRow], found: BatchGradients) -> bool:
        """Compare two samples with autograd, once, where only the order of tokens tells samples apart."""
        if not self._order_is_proven:
            chosen = [0, len(samples) - 1]
            expected = _joined([self._single(self._parts, samples[index]) for index in chosen])
            error = relative_error(found.features[chosen], expected.features)
            self._order_is_proven = error <= self._tolerance
        return self._order_is_proven

    def _weaker_plan(self, plan: WayPlan, missed: Mapping[str, str]) -> WayPlan | None:
        """Replay what hooks did not catch; None, one by one for all, where replays are not exact either."""
        name, reason = next(iter(missed.items()))
        logger.warning("no exact gradients of %d parameters (first: %s): %s", len(missed), name, reason)
        failed = set(missed)
        weaker = None
        if failed <= set(plan.hooked):
            unhookable = failed.union(name for name in plan.ways if name not in plan.hooked)
            weaker = plan_ways(self._model, self._trainable, unhookable=unhookable)
        _log_plan(weaker)
        return weaker

    def _single(self, parts: LossModel, sample: TokenRow) -> BatchGradients:
        sink = self._recipe.sink(1)
        with own_gradients(self._trainable, parts.embedding):
            read = read_samples(parts, pad_batch([sample], parts.device))
            read.losses.sum().backward()  # autograd.grad would refuse re-entrant checkpoints
            for name, parameter in self._trainable.items():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                # a copy: the sink works in place, and a gradient may be a view of another
                sink.add(name, gradient.to(self._recipe.dtype, copy=True).reshape(1, -1))
        return BatchGradients(sink.features, read.losses.detach(), sink.largest, read.states)


def _joined(parts: Sequence[BatchGradients]) -> BatchGradients:
    return BatchGradients(
        features=torch.cat([part.features for part in parts]),
        losses=torch.cat([part.losses for part in parts]),
        largest=torch.cat([part.largest for part in parts]),
        states=torch.cat([part.states for part in parts]),
    )


def _log_plan(plan: WayPlan | None) -> None:
    if plan is None:
        logger.warning("every parameter: each sample gets a backward pass of its own, which is slower")
        return
    summary = ways_summary(plan.ways)
    if "replay" not in summary:
        logger.info("per-sample gradients of all %d parameters by hooks", len(plan.hooked))
        return
    logger.warning(
        "per-sample gradients of %d parameters by hooks, of %d (first: %s) by running %d layers again sample "
        "by sample, which is slower",
        len(plan.hooked),
        summary["replay"]["parameters"],
        summary["replay"]["first"],
        len(plan.sites),
    )
