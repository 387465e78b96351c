"""Random projections of per-sample gradients, reproducible from a seed and the parameter's name.

Signs, rotations and buckets come from a CPU generator, so that every device projects alike. To add a
projection, edit this file only: a frozen variant with `dim` and `seed` in the union, its kind in
`ProjectionName`, and its case in `Projector.add`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, assert_never, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.frozen import Frozen
from clusterucb_core.records import FloatArray, IntArray
from clusterucb_core.seeds import child_rng

_DENSE_ENTRIES = 2**22  # entries of the dense matrix held at once
_LONG_SLICE = 4096  # from so many entries on, a processor adds slices faster than it gathers entries


class RollSketch(Frozen):
    """A random sign a coordinate and a random rotation a chunk of `dim` coordinates; the chunks are added."""

    kind: Literal["roll"] = "roll"
    dim: int = Field(ge=1)
    seed: int


class CountSketch(Frozen):
    """A random sign and a random bucket a coordinate; what shares a bucket is added."""

    kind: Literal["count_sketch"] = "count_sketch"
    dim: int = Field(ge=1)
    seed: int


class Rademacher(Frozen):
    """A dense matrix of random signs over sqrt(dim): the reference, slow."""

    kind: Literal["rademacher"] = "rademacher"
    dim: int = Field(ge=1)
    seed: int


Projection = Annotated[RollSketch | CountSketch | Rademacher, Field(discriminator="kind")]
PROJECTION_KINDS = {
    variant.model_fields["kind"].default: variant for variant in get_args(get_args(Projection)[0])
}
ProjectionName = Literal["auto", "none", "roll", "count_sketch", "rademacher"]


def resolve_projection(name: ProjectionName, *, dim: int, n_parameters: int, seed: int) -> Projection | None:
    """Turn the configured name into a projection.

    Args:
        name: `auto` takes none where the model trains at most 2 x `dim` parameters, else the roll sketch.
        dim: dimensions of a projected feature.
        n_parameters: how many parameters the model trains.
        seed: the run's seed.

    Returns:
        The projection, or None where features stay unprojected.

    Raises:
        InvalidConfig: unknown name, or `dim` below 1.
    """
    if dim < 1:
        raise InvalidConfig(f"projection_dim={dim} is below 1; 8192 is the default")
    if name == "none" or (name == "auto" and n_parameters <= 2 * dim):
        return None
    kind = "roll" if name == "auto" else name
    if kind not in PROJECTION_KINDS:
        known = ", ".join(("auto", "none", *PROJECTION_KINDS))
        raise InvalidConfig(f"projection {name!r} is unknown; choose one of {known}")
    return PROJECTION_KINDS[kind](dim=dim, seed=seed)


@dataclass(frozen=True)
class _Draw:
    """What was drawn for one parameter.

    `signs` [numel]. `places`: buckets [numel], or the rotations, on the host, of those chunks that are added
    slice by slice: the last ones. `sources`: where each entry of the chunks before them comes from once they
    are rotated; their signs are in that order.
    """

    signs: Tensor
    places: Tensor
    sources: Tensor


@dataclass(frozen=True)
class Projector:
    """A projection made ready for one device and dtype; it keeps what it drew for each parameter."""

    projection: Projection
    device: torch.device
    dtype: torch.dtype
    _draws: dict[str, _Draw] = field(default_factory=dict[str, _Draw])

    def add(self, name: str, gradients: Tensor, out: Tensor) -> None:
        """Project the gradients of one parameter and add them to `out`.

        Args:
            name: the parameter's name, which seeds its share of the projection.
            gradients: per-sample gradients [b, numel].
            out: sums [b, dim], changed in place.
        """
        match self.projection:
            case RollSketch():
                _add_rolled(self._draw(name, gradients.shape[1]), gradients, out)
            case CountSketch():
                draw = self._draw(name, gradients.shape[1])
                out.index_add_(1, draw.places, gradients * draw.signs)
            case Rademacher():
                _add_dense(self.projection, name, gradients, out)
            case _:
                assert_never(self.projection)

    def _draw(self, name: str, numel: int) -> _Draw:
        if name not in self._draws:
            dim = self.projection.dim
            rng = child_rng(self.projection.seed, self.projection.kind, name)
            signs = _signs(rng, numel)
            sources = np.zeros(0, dtype=np.int32)
            if self.projection.kind == "roll":
                rotations = rng.integers(0, dim, -(-numel // dim))
                sliced = self.device.type == "cpu" and dim >= _LONG_SLICE
                gathered = 0 if sliced else numel // dim
                sources = _rotated_sources(rotations[:gathered], dim)
                signs[: len(sources)] = signs[sources]
                places = torch.from_numpy(rotations[gathered:])
            else:
                places = torch.from_numpy(rng.integers(0, dim, numel)).to(self.device)
            self._draws[name] = _Draw(
                torch.from_numpy(signs).to(self.device, self.dtype),
                places,
                torch.from_numpy(sources).to(self.device),
            )
        return self._draws[name]


def _signs(rng: np.random.Generator, count: int) -> FloatArray:
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-count // 8)), dtype=np.uint8), count=count)
    return bits.astype(np.float32) * 2 - 1


def _rotated_sources(rotations: IntArray, dim: int) -> NDArray[np.int32]:
    """Return which entry [chunks * dim] comes to each place when every chunk is rotated by its own amount."""
    within = (np.arange(dim) - rotations[:, None]) % dim
    return (within + dim * np.arange(len(rotations))[:, None]).ravel().astype(np.int32)


def _add_rolled(draw: _Draw, gradients: Tensor, out: Tensor) -> None:
    """Add whole chunks by a few large operations, which suit a GPU, and what is left slice by slice."""
    dim = out.shape[1]
    gathered = len(draw.sources)
    if gathered:
        rotated = gradients.index_select(1, draw.sources).mul_(draw.signs[:gathered])
        out.add_(rotated.view(len(out), -1, dim).sum(dim=1))
    for chunk, rotation in enumerate(draw.places.tolist()):
        start = gathered + chunk * dim
        values = gradients[:, start : start + dim]
        signs = draw.signs[start : start + dim]
        fitting = min(dim - rotation, values.shape[1])
        out[:, rotation : rotation + fitting].addcmul_(values[:, :fitting], signs[:fitting])
        if fitting < values.shape[1]:
            out[:, : values.shape[1] - fitting].addcmul_(values[:, fitting:], signs[fitting:])


def _add_dense(projection: Rademacher, name: str, gradients: Tensor, out: Tensor) -> None:
    start = 0
    for block in _dense_blocks(projection, name, gradients.shape[1]):
        matrix = torch.from_numpy(block).to(gradients.device, gradients.dtype)
        out.addmm_(gradients[:, start : start + len(block)], matrix, alpha=projection.dim**-0.5)
        start += len(block)


def _dense_blocks(projection: Rademacher, name: str, numel: int) -> Iterator[FloatArray]:
    """Yield the rows of the sign matrix [numel, dim] block by block: whole, it can pass any memory."""
    rng = child_rng(projection.seed, projection.kind, name)
    rows = max(1, _DENSE_ENTRIES // projection.dim)
    for start in range(0, numel, rows):
        count = min(rows, numel - start)
        yield _signs(rng, count * projection.dim).reshape(count, projection.dim)
