"""Per-sample gradients of LoRA matrices, caught by hooks during one batched backward pass.

The matrices themselves are frozen meanwhile: a linear layer's per-sample gradient is the product of the
gradient at its output and its input, so no weight gradient of the batch is ever computed. The product is
taken in float32 (float64 for a float64 model), at whatever precision PyTorch is set to multiply float32.
"""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from clusterucb_core.errors import InvalidModel
from clusterucb_core.features.call_sums import CallSums
from clusterucb_core.features.slices import SampleSlices


class LinearHooks:
    """Turns output gradients of linear layers into per-sample gradients and hands them on."""

    def __init__(
        self, layers: Mapping[str, tuple[nn.Linear, ...]], slices: SampleSlices, sums: CallSums
    ) -> None:
        self._layers = layers
        self._slices = slices
        self._sums = sums
        self.flattened = False
        """Whether a layer has seen the tokens of all samples on one axis."""

    @contextmanager
    def attached(self) -> Generator[None]:
        """Watch the layers for a while."""
        with ExitStack() as stack:
            for name, layers in self._layers.items():
                for layer in layers:
                    stack.callback(layer.register_forward_hook(partial(self._on_forward, name)).remove)
            yield

    def _on_forward(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember a layer's input and wait for the gradient at its output."""
        if not self._sums.opens(layer, (name,)):
            return
        values: Tensor = inputs[0].detach()
        if not self._is_sample_major(values):
            self._sums.reject((name,), f"its layer mixes samples: input {tuple(values.shape)}")
            return
        self.flattened |= self._slices.is_flattened(values)
        version = values._version  # pyright: ignore[reportPrivateUsage]
        output.requires_grad_(True).register_hook(partial(self._on_gradient, name, values, version))

    def _on_gradient(self, name: str, values: Tensor, version: int, gradient: Tensor) -> None:
        if values._version != version:  # pyright: ignore[reportPrivateUsage]
            self._sums.reject((name,), "the input of its layer was overwritten after use")
        samples, dtype = self._slices.samples, self._sums.dtype
        gradient = gradient.reshape(samples, -1, gradient.shape[-1]).to(dtype)
        values = values.reshape(samples, -1, values.shape[-1]).to(dtype)
        self._sums.arrived(name, gradient.transpose(1, 2).bmm(values).flatten(1))

    def _is_sample_major(self, values: Tensor) -> bool:
        """Tell whether the axes are sample and token, or both in one; an expert, for instance, mixes them."""
        samples, tokens = self._slices.samples, self._slices.tokens
        if samples == 1 or (values.ndim == 3 and tuple(values.shape[:2]) == (samples, tokens)):
            return True
        return values.ndim == 2 and values.shape[0] == samples * tokens


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Put the model into evaluation mode for a while: dropout would give every sample a random gradient."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(trainable: Mapping[str, nn.Parameter], embedding: nn.Module) -> Generator[None]:
    """Freeze the trainable parameters, and start the graph at the embedding's output instead.

    Raises:
        InvalidModel: a parameter is already frozen: another thread is using the same model.
    """
    taken = [name for name, parameter in trainable.items() if not parameter.requires_grad]
    if taken:
        raise InvalidModel(f"{taken[0]} was frozen meanwhile; give each thread a model of its own")
    handle = embedding.register_forward_hook(_require_gradient)
    try:
        for parameter in trainable.values():
            parameter.requires_grad_(False)
        yield
    finally:
        handle.remove()
        for parameter in trainable.values():
            parameter.requires_grad_(True)


@contextmanager
def own_gradients(trainable: Mapping[str, nn.Parameter], embedding: nn.Module) -> Generator[None]:
    """Let a backward pass leave gradients in the trainable parameters; put back what they held before."""
    held = {name: parameter.grad for name, parameter in trainable.items()}
    # a re-entrant checkpoint passes no gradient where none of its inputs asks for one
    handle = embedding.register_forward_hook(_require_gradient)
    try:
        for parameter in trainable.values():
            parameter.grad = None
        yield
    finally:
        handle.remove()
        for name, parameter in trainable.items():
            parameter.grad = held[name]


def _require_gradient(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
    output.requires_grad_(True)
