"""Forward-only features of samples: what a model tells of them without a backward pass.

There are two kinds. `states` are mean final hidden states over supervised positions, scaled to unit length,
which the pass of a gradient gives besides. `forward` features are those of the output head: the sketch of the
mean outer product of final hidden state and error, then the mean error, each of unit length and one weight.
What a feature is made of stands here alone: `PARTS` and `part_of`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from clusterucb_core.features.batches import plan_batches
from clusterucb_core.features.engine import BatchGradients
from clusterucb_core.features.gradients import UnusableSamples
from clusterucb_core.features.hooks import evaluating
from clusterucb_core.features.last_layer import LastLayer
from clusterucb_core.features.losses import hidden_width, loss_model, read_samples
from clusterucb_core.features.outcomes import Compute, FeatureBatch, batch_outcomes, feature_batch
from clusterucb_core.features.token_rows import TokenLimits, TokenRow, pad_batch, unusable_reason
from clusterucb_core.records import FloatArray, IntArray

OUTER_WIDTH = 4096
PartName = Literal["outer", "error", "state"]
ForwardKind = Literal["forward", "states"]
# in the order in which they lie in a feature: `outer` is as wide as its sketch, the others as the model
PARTS: Mapping[ForwardKind, tuple[PartName, ...]] = {"forward": ("outer", "error"), "states": ("state",)}


def forward_parts(
    model: nn.Module,
    samples: Sequence[TokenRow],
    *,
    width: int = OUTER_WIDTH,
    seed: int = 0,
    max_batch_tokens: int = 4096,
) -> dict[str, NDArray[np.float32]]:
    """Return the parts of forward-only features as they are, not scaled, in the order of the samples.

    Args:
        model: a causal language model, with an adapter or without. Its training mode is left as it was.
        samples: at least one record with `.input_ids` and `.labels` (-100 = masked).
        width: entries of the sketch of outer products; where these have no more, they are kept whole.
        seed: of the sketch.
        max_batch_tokens: padded tokens of one batch.

    Returns:
        `outer` [n, width], `error` and `state` [n, h], `losses` [n], all float32.

    Raises:
        UnusableSamples: samples without a supervised token, or longer than the model reads.
        InvalidModel: no output head, or token ids outside the vocabulary.
    """
    layer = LastLayer(model, width=width, seed=seed)
    bad = [(i, found[0]) for i, s in enumerate(samples) if (found := unusable_reason(s, layer.limits))]
    if bad:
        raise UnusableSamples(tuple(i for i, _ in bad), tuple(reason for _, reason in bad))
    lengths = np.array([len(sample.input_ids) for sample in samples], dtype=np.int64)
    batches = plan_batches(lengths, max_batch_tokens=max_batch_tokens)
    found = [layer.parts([samples[index] for index in batch]) for batch in batches]
    order = np.argsort(np.concatenate(batches))
    names = (*(name for parts in PARTS.values() for name in parts), "losses")
    return {
        name: torch.cat([getattr(part, name) for part in found]).float().cpu().numpy()[order]
        for name in names
    }


@dataclass(frozen=True)
class ForwardFeatures:
    """Computes forward-only features of planned batches, with unusable samples set apart.

    `width` entries make a feature, `hidden` the final hidden state that comes with it.
    """

    width: int
    hidden: int
    limits: TokenLimits
    compute: Compute

    def iterate(self, samples: Sequence[TokenRow], batches: Sequence[IntArray]) -> Iterator[FeatureBatch]:
        """Yield unit rows of planned batches, one `FeatureBatch` each, as `iter_gradient_features` does.

        Raises:
            InvalidModel: token ids outside the vocabulary.
        """
        for batch in batches:
            chosen = [samples[index] for index in batch]
            outcomes = batch_outcomes(self.compute, chosen, limits=self.limits, unit_rows=True)
            yield feature_batch(batch, outcomes, width=self.width)


def head_features(model: nn.Module, *, width: int = OUTER_WIDTH, seed: int = 0) -> ForwardFeatures:
    """Return what computes the features of a model's output head.

    Args:
        model: a causal language model, with an adapter or without.
        width: entries of the sketch of outer products.
        seed: of that sketch.

    Raises:
        InvalidModel: no output head.
    """
    layer = LastLayer(model, width=width, seed=seed)

    def compute(samples: Sequence[TokenRow]) -> BatchGradients:
        parts = layer.parts(samples)
        # a part of zeros stays one, so that a sample without any error can be told from a broken one
        rows = [functional.normalize(getattr(parts, name), dim=1, eps=1e-30) for name in PARTS["forward"]]
        largest = torch.linalg.vector_norm(parts.error, float("inf"), dim=1)
        return BatchGradients(torch.cat(rows, dim=1), parts.losses, largest, parts.state)

    return ForwardFeatures(width + layer.hidden, layer.hidden, layer.limits, compute)


def state_features(model: nn.Module) -> ForwardFeatures:
    """Return what computes mean final hidden states of a model, with an adapter or without.

    Raises:
        InvalidModel: no output head.
    """
    parts, hidden = loss_model(model), hidden_width(model)

    def compute(samples: Sequence[TokenRow]) -> BatchGradients:
        with evaluating(model), torch.inference_mode(mode=False), torch.no_grad():
            read = read_samples(parts, pad_batch(samples, parts.device))
        largest = torch.linalg.vector_norm(read.states, float("inf"), dim=1)
        return BatchGradients(read.states, read.losses, largest, read.states)

    return ForwardFeatures(hidden, hidden, parts.limits, compute)


def part_of(features: FloatArray, name: PartName, *, width: int) -> FloatArray:
    """Return one part of forward-only features [n, d] as rows of unit length.

    Args:
        features: features of the kind that has the part.
        name: one of `PARTS`.
        width: entries of the sketch of outer products.

    Returns:
        float32 [n, width] for `outer`, else [n, h].
    """
    if name == "state":
        return features
    part = features[:, :width] if name == "outer" else features[:, width:]
    return part / np.linalg.norm(part, axis=1, keepdims=True)
