"""Per-sample gradients of LoRA matrices, caught by hooks during one batched backward pass.

The matrices themselves are frozen meanwhile: a linear layer's per-sample gradient is the product of the
gradient at its output and its input, so no weight gradient of the batch is ever computed.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from clusterucb_core.errors import InvalidModel
from clusterucb_core.features.sinks import FeatureSink


@dataclass(frozen=True)
class HookPlan:
    """Which layers own each hooked parameter, and the trainable parameters that no hook can claim."""

    layers: Mapping[str, tuple[nn.Linear, ...]]
    unclaimed: tuple[str, ...]


def plan_hooks(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> HookPlan:
    """Share the trainable parameters between hooks and the exact fallback.

    Claimed are the weights of plain linear `lora_A` and `lora_B` layers that the standard LoRA forward calls.
    Magnitudes (DoRA), LoRA on embeddings or on expert parameters, biases and whole saved modules are not.

    Args:
        model: the model with its adapter.
        trainable: its trainable parameters by name.

    Returns:
        The plan.

    Raises:
        InvalidModel: an adapter is merged or switched off, so its parameters take no part.
    """
    hookable = {id(layer) for layer in _lora_layers(model)}
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    layers: dict[str, tuple[nn.Linear, ...]] = {}
    for name, parameter in trainable.items():
        owning = [module for module in owners[id(parameter)] if isinstance(module, nn.Linear)]
        claimed = all(id(module) in hookable for module in owners[id(parameter)])
        if claimed and all(module.weight is parameter for module in owning):
            layers[name] = tuple(owning)
    unclaimed = tuple(name for name in trainable if name not in layers)
    return HookPlan(layers, unclaimed)


def _lora_layers(model: nn.Module) -> Iterator[nn.Linear]:
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if module.merged or module.disable_adapters:
            raise InvalidModel(f"the adapter of {name!r} is merged or disabled; unmerge and enable it first")
        variants = getattr(module, "lora_variant", {})
        for matrices in (module.lora_A, module.lora_B):
            for adapter, layer in matrices.items():
                if adapter not in variants and type(layer) is nn.Linear:
                    yield layer


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


class Capture:
    """Turns output gradients of the hooked layers into per-sample gradients and hands them to a sink."""

    def __init__(self, plan: HookPlan, batch: tuple[int, int], sink: FeatureSink) -> None:
        self._batch = batch
        self._sink = sink
        self._waiting = dict.fromkeys(plan.layers, 0)
        self._totals: dict[str, Tensor] = {}
        self._finished: set[str] = set()
        self._foreign: set[str] = set()

    def missed(self) -> tuple[str, ...]:
        """Name the parameters whose gradients did not arrive, or not in a form that is known to be exact."""
        return tuple(name for name in self._waiting if name not in self._finished or name in self._foreign)

    def on_forward(self, name: str, _layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember a layer's input and wait for the gradient at its output."""
        if not output.requires_grad:  # the first, gradient-free pass of a checkpointed block
            return
        values = inputs[0].detach()
        if name in self._finished or not self._is_sample_major(values):
            self._foreign.add(name)
            return
        self._waiting[name] += 1
        output.register_hook(partial(self._on_gradient, name, values))

    def _on_gradient(self, name: str, values: Tensor, gradient: Tensor) -> None:
        dtype = self._sink.recipe.dtype
        gradient = gradient.reshape(self._batch[0], -1, gradient.shape[-1]).to(dtype)
        values = values.reshape(self._batch[0], -1, values.shape[-1]).to(dtype)
        product = torch.bmm(gradient.transpose(1, 2), values).flatten(1)
        if name in self._totals:  # a layer called twice adds up, before Adam
            product.add_(self._totals.pop(name))
        self._waiting[name] -= 1
        if self._waiting[name] > 0:
            self._totals[name] = product
            return
        self._finished.add(name)
        self._sink.add(name, product)

    def _is_sample_major(self, values: Tensor) -> bool:
        """Tell whether the axes are sample and token; a router, for instance, mixes all samples' tokens."""
        return self._batch[0] == 1 or (values.ndim == 3 and tuple(values.shape[:2]) == self._batch)


@contextmanager
def capturing(
    plan: HookPlan, trainable: Mapping[str, nn.Parameter], embedding: nn.Module, capture: Capture
) -> Generator[None]:
    """Freeze the trainable parameters and attach the hooks; undo both on leaving.

    Raises:
        InvalidModel: a parameter is already frozen: another thread is using the same model.
    """
    frozen = [name for name, parameter in trainable.items() if not parameter.requires_grad]
    if frozen:
        raise InvalidModel(f"{frozen[0]} was frozen meanwhile; give each thread a model of its own")
    handles: list[RemovableHandle] = []
    try:
        for parameter in trainable.values():
            parameter.requires_grad_(False)
        handles.append(embedding.register_forward_hook(_require_gradient))
        for name, layers in plan.layers.items():
            hook: Callable[..., None] = partial(capture.on_forward, name)
            handles.extend(layer.register_forward_hook(hook) for layer in layers)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trainable.values():
            parameter.requires_grad_(True)


def _require_gradient(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
    output.requires_grad_(True)
