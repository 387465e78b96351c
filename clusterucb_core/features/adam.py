"""A sample's gradient as the Adam optimiser of a checkpoint would see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clusterucb_core.errors import InvalidModel
from clusterucb_core.records import FloatArray


@dataclass(frozen=True)
class AdamMoments:
    """Both Adam moments of a checkpoint.

    `exp_avg` and `exp_avg_sq` are float arrays [p], parameter after parameter in the order of
    `model.named_parameters()` with `requires_grad`.
    """

    exp_avg: FloatArray
    exp_avg_sq: FloatArray
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class AdamScaling:
    """The moments made ready for one device, parameter by parameter.

    `momentum` holds beta1 x exp_avg; `variance` holds beta2 x exp_avg_sq + eps.
    """

    momentum: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    beta1: float
    beta2: float

    def apply(self, name: str, gradients: Tensor) -> None:
        """Replace gradients [b, numel] by m' / sqrt(v' + eps), in place (LESS's rule, no bias correction)."""
        variance = torch.addcmul(self.variance[name], gradients, gradients, value=1 - self.beta2)
        torch.add(self.momentum[name], gradients, alpha=1 - self.beta1, out=gradients)
        gradients.mul_(variance.rsqrt_())


def adam_scaling(
    moments: AdamMoments,
    sizes: Sequence[tuple[str, int]],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> AdamScaling:
    """Cut the moments into parameters and fold their constants in.

    Args:
        moments: both moments [p].
        sizes: name and number of entries of each trainable parameter, in the order of the moments.
        device: where the gradients are.
        dtype: that of the gradients.

    Returns:
        The scaling to apply to each parameter's gradients.

    Raises:
        InvalidModel: the moments do not fit the model, or are not finite, or a second moment is negative.
    """
    total = sum(size for _, size in sizes)
    first = np.asarray(moments.exp_avg, dtype=np.float64)
    second = np.asarray(moments.exp_avg_sq, dtype=np.float64)
    if first.shape != (total,) or second.shape != (total,):
        raise InvalidModel(
            f"Adam moments of shapes {first.shape} and {second.shape} do not fit the model's {total} "
            "trainable parameters; take both from the same checkpoint"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all() and (second >= 0).all()):
        raise InvalidModel(
            "Adam moments hold NaN, infinite or negative second entries; the checkpoint is broken"
        )
    cuts = np.cumsum([size for _, size in sizes])[:-1]

    def cut(values: FloatArray) -> dict[str, Tensor]:
        parts = np.split(values, cuts)
        return {
            name: torch.from_numpy(part).to(device, dtype)
            for (name, _), part in zip(sizes, parts, strict=True)
        }

    return AdamScaling(
        momentum=cut(first * moments.beta1),
        variance=cut(second * moments.beta2 + moments.eps),
        beta1=moments.beta1,
        beta2=moments.beta2,
    )
