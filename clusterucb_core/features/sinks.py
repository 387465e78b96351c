"""Where the per-sample gradients of one parameter go: through Adam, into the projection or the raw row."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clusterucb_core.errors import InvalidModel
from clusterucb_core.features.adam import AdamMoments, AdamScaling, adam_scaling
from clusterucb_core.features.projections import Projection, Projector


@dataclass(frozen=True)
class FeatureRecipe:
    """How gradients become features: the place of each parameter in [p], Adam scaling, projection."""

    spans: Mapping[str, tuple[int, int]]
    scaling: AdamScaling | None
    projector: Projector | None
    device: torch.device
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """Entries of a feature: the projection's dimensions, or all trainable parameters."""
        if self.projector is not None:
            return self.projector.projection.dim
        return max(stop for _, stop in self.spans.values())

    def sink(self, samples: int) -> "FeatureSink":
        """Return an empty sink for a batch of that many samples."""
        features = torch.zeros(samples, self.width, device=self.device, dtype=self.dtype)
        return FeatureSink(self, features, torch.zeros_like(features[:, 0]))


@dataclass(frozen=True)
class FeatureSink:
    """Features [b, width] of one batch as they grow, and each sample's largest raw gradient entry [b]."""

    recipe: FeatureRecipe
    features: Tensor
    largest: Tensor

    def add(self, name: str, gradients: Tensor) -> None:
        """Take the complete gradients of one parameter, once.

        Args:
            name: the parameter's name.
            gradients: [b, numel] in the recipe's dtype; given away, since it is changed in place.
        """
        recipe = self.recipe
        # the largest entry tells zero from tiny where a sum of squares would underflow; NaN stays NaN
        self.largest.copy_(
            torch.maximum(self.largest, torch.linalg.vector_norm(gradients, float("inf"), dim=1))
        )
        if recipe.scaling is not None:
            recipe.scaling.apply(name, gradients)
        if recipe.projector is not None:
            recipe.projector.add(name, gradients, self.features)
        else:
            start, stop = recipe.spans[name]
            self.features[:, start:stop] = gradients


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training would change, by name, each once.

    Raises:
        InvalidModel: there is none.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise InvalidModel(
            "the model has no trainable parameter; add a LoRA adapter, and give each thread its own model"
        )
    return trainable


def feature_recipe(
    trainable: Mapping[str, nn.Parameter],
    moments: AdamMoments | None,
    projection: Projection | None,
    *,
    device: torch.device,
) -> FeatureRecipe:
    """Prepare the way from gradients to features for one model.

    Args:
        trainable: from `trainable_parameters`.
        moments: Adam moments [p], or None for plain gradients.
        projection: None keeps all p entries.
        device: where the gradients appear.

    Returns:
        The recipe; gradients are accumulated in float64 for a float64 model, else in float32.
    """
    wide = any(parameter.dtype == torch.float64 for parameter in trainable.values())
    dtype = torch.float64 if wide else torch.float32
    sizes = [(name, parameter.numel()) for name, parameter in trainable.items()]
    spans: dict[str, tuple[int, int]] = {}
    for name, size in sizes:
        start = max((stop for _, stop in spans.values()), default=0)
        spans[name] = (start, start + size)
    scaling = None if moments is None else adam_scaling(moments, sizes, device=device, dtype=dtype)
    projector = None if projection is None else Projector(projection, device, dtype)
    return FeatureRecipe(spans, scaling, projector, device, dtype)
