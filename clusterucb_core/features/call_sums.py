"""Per-sample gradients of a parameter, added up over all calls of its layers, then handed to a sink."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from clusterucb_core.features.sinks import FeatureSink


class CallSums:
    """What has arrived and what is still open in one batch.

    A gradient goes to the sink (through Adam) when the last call of its parameter has given its share. In
    checkpointed blocks a layer runs twice: first without gradients and then, during the backward pass, with
    them (re-entrant), or with gradients both times, when the second run only restores what the first freed.
    """

    def __init__(self, names: Iterable[str], sink: FeatureSink) -> None:
        self._sink = sink
        self._open = dict.fromkeys(names, 0)
        self._sums: dict[str, Tensor] = {}
        self._finished: set[str] = set()
        self._rejected: dict[str, str] = {}
        self._skipped = Counter[int]()
        self._in_backward = False

    @property
    def dtype(self) -> torch.dtype:
        """The type in which gradients are handed over."""
        return self._sink.recipe.dtype

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the batch."""
        self._in_backward = True
        loss.backward()

    def opens(self, layer: nn.Module, names: Iterable[str]) -> bool:
        """Note a call of a layer, and tell whether it is the one to take its parameters' gradients from.

        Args:
            layer: the layer that was called.
            names: the parameters whose gradients it gives.
        """
        if self._in_backward:
            again = self._skipped[id(layer)] > 0
            self._skipped[id(layer)] -= again
            return again
        for name in names:
            self._open[name] += 1
        if torch.is_grad_enabled():
            return True
        self._skipped[id(layer)] += 1
        return False

    def arrived(self, name: str, gradients: Tensor) -> None:
        """Take one call's gradients [b, numel] of a parameter; they are given away."""
        if name in self._sums:
            gradients.add_(self._sums.pop(name))
        self._open[name] -= 1
        if self._open[name] > 0:
            self._sums[name] = gradients
            return
        self._finished.add(name)
        self._sink.add(name, gradients)

    def reject(self, names: Iterable[str], reason: str) -> None:
        """Note that the gradients of these parameters are not, or not known to be, exact."""
        for name in names:
            self._rejected.setdefault(name, reason)

    def missed(self) -> dict[str, str]:
        """Return the parameters without exact gradients, each with the reason; empty where all is well."""
        silent: Sequence[str] = [name for name in self._open if name not in self._finished]
        return {
            **dict.fromkeys(silent, "its layer was not called, or no gradient reached it"),
            **self._rejected,
        }
