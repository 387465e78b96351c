"""Per-sample gradients of any layer: it is run again on each sample's share of what it was given.

What the layer was given and the gradient at its outputs come from the batched pass; then, sample by sample,
autograd differentiates the layer alone. That a share is the right one is checked, not assumed: the layer must
give the same output again.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.hooks import RemovableHandle

from clusterucb_core.features.call_sums import CallSums
from clusterucb_core.features.slices import SampleSlices, mapped, tensors_in
from clusterucb_core.features.ways import ReplaySite


@dataclass(frozen=True)
class _Call:
    """What a layer was given in one call, and the float tensors that it gave."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]


class Replays:
    """Watches layers during a batched pass and replays each when the gradients at its outputs are known."""

    def __init__(self, sites: Sequence[ReplaySite], slices: SampleSlices, sums: CallSums) -> None:
        self._sites = sites
        self._slices = slices
        self._sums = sums
        self._inside: nn.Module | None = None
        self._replaying = False
        self._errors: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self.flattened = False
        """Whether a layer has seen the tokens of all samples on one axis."""

    @contextmanager
    def attached(self) -> Generator[None]:
        """Watch the layers for a while."""
        with ExitStack() as stack:
            for site in self._sites:
                before = site.layer.register_forward_pre_hook(self._on_call)
                after = site.layer.register_forward_hook(partial(self._on_return, site), with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            try:
                yield
            finally:
                for handle in self._handles:  # each keeps the graph alive
                    handle.remove()

    def reject_differing(self, tolerance: float) -> None:
        """Reject the parameters of layers whose replayed outputs differ by more than rounding."""
        worst = torch.stack(list(self._errors.values())).tolist() if self._errors else []
        for path, error in zip(self._errors, worst, strict=True):
            if not error <= tolerance:
                site = next(site for site in self._sites if site.path == path)
                reason = f"{path} gives another output for a sample alone (relative difference {error:.1e})"
                self._sums.reject(site.parameters, reason)

    def _on_call(self, layer: nn.Module, _args: tuple[Any, ...]) -> None:
        if not self._replaying and self._inside is None:  # a layer within another is replayed with it
            self._inside = layer

    def _on_return(
        self, site: ReplaySite, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if self._replaying or self._inside is not layer:
            return None
        self._inside = None
        if not self._sums.opens(layer, site.parameters):
            return None
        if not isinstance(output, (Tensor, tuple, list)):
            self._sums.reject(site.parameters, f"{site.path} returns a {type(output).__name__}")
            return None
        # one output may depend on another, or be another: an alias of each sees what comes from outside only
        output = mapped(_alias, output)
        watched = _float_tensors(output)
        given = [*tensors_in(args), *tensors_in(kwargs)]
        self.flattened |= any(self._slices.is_flattened(tensor) for tensor in given)
        call = _Call(
            args=mapped(Tensor.detach, args),
            kwargs=mapped(Tensor.detach, kwargs),
            outputs=tuple(tensor.detach() for tensor in watched),
        )
        self._handles.append(register_multi_grad_hook(watched, partial(self._on_gradients, site, call)))
        return output

    def _on_gradients(self, site: ReplaySite, call: _Call, gradients: Sequence[Tensor | None]) -> None:
        self._replaying = True
        try:
            with torch.enable_grad(), _thawed(site.parameters.values()):
                totals = self._replayed(site, call, gradients)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            self._sums.reject(site.parameters, f"{site.path} cannot run on one sample ({error})")
            return
        finally:
            self._replaying = False
        for name, total in totals.items():
            self._sums.arrived(name, total)

    def _replayed(
        self, site: ReplaySite, call: _Call, gradients: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        samples, dtype = self._slices.samples, self._sums.dtype
        totals = {
            name: torch.empty(samples, parameter.numel(), device=parameter.device, dtype=dtype)
            for name, parameter in site.parameters.items()
        }
        for sample in range(samples):
            parts = self._replay(site, call, gradients, sample)
            for total, part in zip(totals.values(), parts, strict=True):
                total[sample] = part.flatten()
        return totals

    def _replay(
        self, site: ReplaySite, call: _Call, gradients: Sequence[Tensor | None], sample: int
    ) -> tuple[Tensor, ...]:
        """Differentiate the layer's outputs for one sample, and compare them with those of the batch."""
        take = self._slices.take
        outputs = _float_tensors(site.layer(*take(call.args, sample), **take(call.kwargs, sample)))
        roots: list[Tensor] = []
        weights: list[Tensor] = []
        for output, batched, gradient in zip(outputs, call.outputs, gradients, strict=True):
            if gradient is None:
                continue
            if self._slices.rows(batched) is None and self._slices.samples > 1:
                raise ValueError(f"an output of shape {tuple(batched.shape)} has no axis of samples")
            self._compare(site.path, output.detach(), take(batched, sample))
            if output.requires_grad:
                roots.append(output)
                weights.append(take(gradient, sample))
        parameters = list(site.parameters.values())
        if not roots:
            return tuple(torch.zeros_like(parameter) for parameter in parameters)
        return torch.autograd.grad(roots, parameters, weights, allow_unused=True, materialize_grads=True)

    def _compare(self, path: str, output: Tensor, batched: Tensor) -> None:
        if output.shape != batched.shape:
            raise ValueError(
                f"output {tuple(output.shape)} where {tuple(batched.shape)} is the sample's share"
            )
        difference, scale = (output - batched).abs().amax(), batched.abs().amax()
        error = torch.where(difference == 0, 0, difference / scale)
        # a sample that is not finite has no gradient anyway, and is looked at again alone
        error = torch.where(scale.isfinite(), error, 0).to(self._sums.dtype)
        self._errors[path] = torch.maximum(self._errors[path], error) if path in self._errors else error


def _alias(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor).requires_grad_(True) if tensor.is_floating_point() else tensor


def _float_tensors(value: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]


@contextmanager
def _thawed(parameters: Collection[nn.Parameter]) -> Generator[None]:
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
