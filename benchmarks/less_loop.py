"""Features as LESS computes them, from the formula: sample by sample, with a dense projection. The slow way.

One forward and backward pass a sample; the flat gradient g through Adam, m' / sqrt(v' + eps) with
m' = b1 m + (1 - b1) g and v' = b2 v + (1 - b2) g^2; sixteen of these at a time times a matrix of random signs
[p, d], which is far too large to hold and is drawn again from its seed, block by block, every time; unit
length. (arXiv 2402.04333, section 4; the projection is that of TRAK, arXiv 2303.14186.)

Signs are drawn as one would write it in PyTorch, by `bernoulli_`. On a CPU that takes most of the time, so
there is a stronger variant too, which unpacks random bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from clusterucb_core.features.gradients import AdamMoments
from clusterucb_core.records import TokenizedSample

COLLECTED = 16  # samples that share one pass over the projection matrix
_BLOCK_ENTRIES = 2**22  # entries of the matrix drawn at once

Draw = Literal["bernoulli", "bits"]


@dataclass(frozen=True)
class FlatMoments:
    """Adam moments [p] on the model's device."""

    first: Tensor
    second: Tensor
    beta1: float
    beta2: float
    eps: float

    @classmethod
    def of(cls, moments: AdamMoments, device: torch.device) -> "FlatMoments":
        """Copy moments to a device."""
        first, second = (torch.as_tensor(m).to(device) for m in (moments.exp_avg, moments.exp_avg_sq))
        return cls(first, second, moments.beta1, moments.beta2, moments.eps)

    def transform(self, gradient: Tensor) -> Tensor:
        """Return what Adam makes of a gradient [p]."""
        first = self.beta1 * self.first + (1 - self.beta1) * gradient
        second = self.beta2 * self.second + (1 - self.beta2) * gradient**2
        return first / torch.sqrt(second + self.eps)


@dataclass(frozen=True)
class DenseProjection:
    """A matrix of random signs over sqrt(dim): its columns, its seed, how signs are drawn."""

    dim: int
    seed: int
    draw: Draw = "bernoulli"


def less_features(
    model: nn.Module, samples: Sequence[TokenizedSample], moments: AdamMoments, *, projection: DenseProjection
) -> Tensor:
    """Return unit features [n, dim] on the CPU.

    Args:
        model: a LoRA model in evaluation mode.
        samples: the samples.
        moments: Adam moments [p].
        projection: the dense projection.
    """
    flat_moments = FlatMoments.of(moments, next(model.parameters()).device)
    features: list[Tensor] = []
    for start in range(0, len(samples), COLLECTED):
        collected = [
            flat_moments.transform(flat_gradient(model, sample))
            for sample in samples[start : start + COLLECTED]
        ]
        features.append(project_densely(torch.stack(collected), projection))
    rows = torch.cat(features)
    return (rows / rows.norm(dim=1, keepdim=True)).cpu()


def flat_gradient(model: nn.Module, sample: TokenizedSample) -> Tensor:
    """Return the gradient [p] of one sample's loss, in float32, by an ordinary backward pass."""
    device = next(model.parameters()).device
    ids, labels = (torch.from_numpy(row)[None].to(device) for row in (sample.input_ids, sample.labels))
    model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
    trained = (parameter for parameter in model.parameters() if parameter.grad is not None)
    gradient = torch.cat([parameter.grad.float().flatten() for parameter in trained])
    model.zero_grad(set_to_none=True)
    return gradient


def project_densely(gradients: Tensor, projection: DenseProjection) -> Tensor:
    """Multiply rows [n, p] by the sign matrix [p, dim], drawn block by block."""
    projected = gradients.new_zeros(len(gradients), projection.dim)
    start = 0
    for signs in _sign_blocks(projection, gradients.shape[1], gradients.device):
        projected.addmm_(gradients[:, start : start + len(signs)], signs, alpha=projection.dim**-0.5)
        start += len(signs)
    return projected


def _sign_blocks(projection: DenseProjection, entries: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the rows of the sign matrix [entries, dim], some at a time."""
    generator = torch.Generator(device).manual_seed(projection.seed)
    rng = np.random.default_rng(projection.seed)
    rows = max(1, _BLOCK_ENTRIES // projection.dim)
    block = torch.empty(rows, projection.dim, device=device)
    for start in range(0, entries, rows):
        count = min(rows, entries - start)
        if projection.draw == "bernoulli":
            yield block[:count].bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        else:
            yield _unpacked_signs(rng, count * projection.dim).view(count, -1).to(device)


def _unpacked_signs(rng: np.random.Generator, count: int) -> Tensor:
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-count // 8)), dtype=np.uint8), count=count)
    return torch.from_numpy(bits).float().mul_(2).sub_(1)
