"""The share of one sample in what a layer was given and gave: rows of the leading axis."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor


@dataclass(frozen=True)
class SampleSlices:
    """Cuts tensors of a batch of `samples` samples, padded to `tokens` tokens each.

    A leading axis of `samples` entries holds a sample in each, one of `samples x tokens` entries all tokens,
    sample after sample; any other tensor is shared by all samples.
    """

    samples: int
    tokens: int

    def rows(self, tensor: Tensor) -> int | None:
        """Return the leading entries that belong to one sample, or None for a shared tensor."""
        if tensor.ndim == 0 or tensor.shape[0] not in (self.samples, self.samples * self.tokens):
            return None
        return tensor.shape[0] // self.samples

    def is_flattened(self, tensor: Tensor) -> bool:
        """Tell whether samples and tokens share the leading axis, in an order that only a test can prove."""
        return self.samples > 1 and self.tokens > 1 and self.rows(tensor) == self.tokens

    def take(self, value: Any, sample: int) -> Any:
        """Return one sample's share of a tensor, or of all tensors in nested tuples, lists and dicts."""
        if self.samples == 1:
            return value
        return mapped(lambda tensor: self._cut(tensor, sample), value)

    def _cut(self, tensor: Tensor, sample: int) -> Tensor:
        rows = self.rows(tensor)
        return tensor if rows is None else tensor[sample * rows : (sample + 1) * rows]


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return the same nest of tuples, lists and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(change, item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        items = [mapped(change, item) for item in cast("tuple[Any, ...] | list[Any]", value)]
        if isinstance(value, list):
            return items
        named: Any = type(value)
        return named(*items) if hasattr(named, "_fields") else tuple(items)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples, lists and mappings in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in cast("Mapping[Any, Any]", value).values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in cast("tuple[Any, ...] | list[Any]", value):
            yield from tensors_in(item)
