"""Which way the per-sample gradients of each trainable parameter are taken.

- hook: the weight of a plain linear `lora_A` or `lora_B`; its gradient is a product of what the layer saw.
- replay: any other parameter; the smallest layer that owns all its uses is run again, sample by sample.
- one_by_one: where neither is exact, every sample gets a backward pass of its own.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from clusterucb_core.errors import InvalidModel

Way = Literal["hook", "replay", "one_by_one"]

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# They read the weights of lora_A and lora_B and never call them, so that no hook would fire.
_READERS = (MultiheadAttention, ParamWrapper)


@dataclass(frozen=True)
class ReplaySite:
    """A layer to run again sample by sample, and all trainable parameters inside it by name."""

    path: str
    layer: nn.Module
    parameters: Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class WayPlan:
    """The linear layers that own each hooked parameter, and the layers to replay for all others."""

    hooked: Mapping[str, tuple[nn.Linear, ...]]
    sites: tuple[ReplaySite, ...]

    @property
    def ways(self) -> dict[str, Way]:
        """The way of every trainable parameter."""
        hooked: dict[str, Way] = dict.fromkeys(self.hooked, "hook")
        return {**hooked, **{name: "replay" for site in self.sites for name in site.parameters}}


def plan_ways(
    model: nn.Module, trainable: Mapping[str, nn.Parameter], *, unhookable: Collection[str] = ()
) -> WayPlan:
    """Share the trainable parameters between hooks and replays.

    A layer that is replayed claims all its parameters, so that none is counted twice.

    Args:
        model: the model with its adapter.
        trainable: its trainable parameters by name.
        unhookable: names for which hooks have proved inexact.

    Returns:
        The plan.

    Raises:
        InvalidModel: an adapter is merged or switched off, or a trainable parameter is of a kind that
            autograd cannot differentiate here; the message names the layer.
    """
    for name, parameter in trainable.items():
        _require_differentiable(name, parameter)
    called = {id(layer) for layer in _called_matrices(model)}
    owners = _owners(model)
    hooked: dict[str, tuple[nn.Linear, ...]] = {}
    for name, parameter in trainable.items():
        owning = [module for module in owners[id(parameter)] if isinstance(module, nn.Linear)]
        claimed = all(id(module) in called for module in owners[id(parameter)])
        if claimed and name not in unhookable and all(module.weight is parameter for module in owning):
            hooked[name] = tuple(owning)
    sites = _replay_sites(model, trainable, [name for name in trainable if name not in hooked])
    replayed = {name for site in sites for name in site.parameters}
    return WayPlan({name: layers for name, layers in hooked.items() if name not in replayed}, sites)


def ways_summary(ways: Mapping[str, Way]) -> dict[str, dict[str, int | str]]:
    """Return, for each way that is taken, how many parameters take it and which is the first."""
    summary: dict[str, dict[str, int | str]] = {}
    for way in ("hook", "replay", "one_by_one"):
        names = [name for name, taken in ways.items() if taken == way]
        if names:
            summary[way] = {"parameters": len(names), "first": names[0]}
    return summary


def _require_differentiable(name: str, parameter: nn.Parameter) -> None:
    obstacle = None
    if parameter.device.type == "meta":
        obstacle = "has no values on this machine (meta device); load it instead of offloading it"
    elif type(parameter.data) is not Tensor:
        obstacle = f"is a {type(parameter.data).__name__}; train plain tensors, neither quantised nor sharded"
    elif parameter.dtype not in _FLOATS:
        obstacle = (
            f"is stored as {parameter.dtype}; freeze it, or store it in a float type of 16 bits or more"
        )
    elif parameter.numel() == 0:
        obstacle = "is empty here; gather partitioned parameters first"
    if obstacle is not None:
        raise InvalidModel(f"no per-sample gradient can be taken of {name!r}: it {obstacle}")


def _called_matrices(model: nn.Module) -> Iterator[nn.Linear]:
    """Yield the lora_A and lora_B that the standard LoRA forward calls like any linear layer."""
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if module.merged or module.disable_adapters:
            raise InvalidModel(f"the adapter of {name!r} is merged or disabled; unmerge and enable it first")
        if not isinstance(module, LoraLayer) or isinstance(module, _READERS):
            continue
        variants = getattr(module, "lora_variant", {})  # DoRA and others
        for matrices in (module.lora_A, module.lora_B):
            for adapter, layer in matrices.items():
                if adapter not in variants and type(layer) is nn.Linear:
                    yield layer


def _owners(model: nn.Module) -> dict[int, list[nn.Module]]:
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    return owners


def _replay_sites(
    model: nn.Module, trainable: Mapping[str, nn.Parameter], names: Sequence[str]
) -> tuple[ReplaySite, ...]:
    """Find the layers to replay for these parameters, and for those that come with them."""
    name_of = {id(parameter): name for name, parameter in trainable.items()}
    places: dict[str, list[tuple[str, nn.Module]]] = {name: [] for name in trainable}
    for path, layer, parameter in _placed_parameters(model):
        if id(parameter) in name_of:
            places[name_of[id(parameter)]].append((path, layer))
    sites: dict[int, ReplaySite] = {}
    waiting = list(names)
    while waiting:
        for path, layer in places[waiting.pop()]:
            if id(layer) in sites:
                continue
            inside = {name_of[id(p)]: p for p in layer.parameters() if id(p) in name_of}
            sites[id(layer)] = ReplaySite(path, layer, inside)
            waiting.extend(inside)
    return tuple(sites.values())


def _placed_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Yield each parameter with the layer that owns all its uses, once for each such layer.

    That is the adapter's wrapper where there is one (it may read the weights of its parts without calling
    them), else the module that holds the parameter.
    """
    seen: set[tuple[int, int]] = set()
    waiting: list[tuple[str, nn.Module, tuple[str, nn.Module] | None]] = [("", model, None)]
    while waiting:
        path, module, wrapper = waiting.pop()
        if wrapper is None and isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            wrapper = (path, module)
        place, layer = wrapper or (path, module)
        if (id(module), id(layer)) in seen:
            continue
        seen.add((id(module), id(layer)))
        for parameter in module.parameters(recurse=False):
            yield place, layer, parameter
        children = [(f"{path}.{name}".lstrip("."), child, wrapper) for name, child in module.named_children()]
        waiting.extend(reversed(children))
