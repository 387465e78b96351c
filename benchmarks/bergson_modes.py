"""Bergson's modes that give a gradient for each sample of the workload, where bergson is installed.

Its collector runs in memory, so that no disk slows it down, with the mean loss, the same samples and the same
budget of padded tokens. Its Adam is g / (sqrt(v) + eps), so none of its modes makes LESS's features; with
and without it are timed.
"""

import contextlib
import importlib.util
import io
import logging
import math
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gradient_workload import Workload

# so many dimensions all modules together get, for a projection of each
PER_MODULE_TOTAL = 8192


@dataclass(frozen=True)
class BergsonMode:
    """A mode: what is projected (None: nothing) to how many dimensions, and whether through its Adam."""

    target: str | None
    dim: int
    adam: bool

    @property
    def name(self) -> str:
        """Return the name under which the mode is reported."""
        what = {
            None: "no projection",
            "per_module": f"each module to {self.dim} x {self.dim}",
            "global": f"all to {self.dim}",
        }[self.target]
        return f"bergson, {what}{', its Adam' if self.adam else ''}"


def is_installed() -> bool:
    """Tell whether bergson can be imported."""
    return importlib.util.find_spec("bergson") is not None


def modes(workload: Workload, dims: Sequence[int]) -> list[BergsonMode]:
    """Return the modes to time: each module by itself, all modules together to each of `dims`, and none."""
    modules = len(_adapter_modules(workload))
    square = max(1, math.isqrt(PER_MODULE_TOTAL // modules))
    found = [BergsonMode("per_module", square, adam) for adam in (False, True)]
    found += [BergsonMode("global", dim, adam) for dim in dims for adam in (False, True)]
    return [*found, BergsonMode(None, 0, adam=False)]


def runner(
    workload: Workload, mode: BergsonMode, batches: Sequence[Sequence[int]]
) -> Callable[[], dict[str, torch.Tensor]]:
    """Prepare a mode.

    Args:
        workload: model, samples, moments.
        mode: from `modes`.
        batches: indices into the samples.

    Returns:
        A call that collects the gradients of those samples: [all samples, width] by bergson's name of the
        module, or in one piece; rows of other samples are zero.
    """
    data = _dataset(workload)
    processor = _processor(workload, mode)

    def run() -> dict[str, torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            return _collect(workload, data, processor, batches=batches, folder=Path(folder))

    return run


def _collect(
    workload: Workload, data: Any, processor: Any, *, batches: Sequence[Sequence[int]], folder: Path
) -> dict[str, torch.Tensor]:
    from bergson import CollectorComputer, IndexConfig, InMemoryCollector

    model: Any = workload.model
    config = IndexConfig(run_path=str(folder / "index"), loss_reduction="mean")
    config.partial_run_path.mkdir()
    collector = InMemoryCollector(
        model=model.base_model,
        cfg=config,
        processor=processor,
        target_modules=set(_adapter_modules(workload)),
        data=data,
    )
    indices = [[int(index) for index in batch] for batch in batches]
    computer = CollectorComputer(model=model, data=data, collector=collector, batches=indices, cfg=config)
    computer.run_with_collector_hooks(desc="")
    return collector.gradients


def _dataset(workload: Workload) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [sample.input_ids.tolist() for sample in workload.samples],
            "labels": [sample.labels.tolist() for sample in workload.samples],
        }
    )


def _processor(workload: Workload, mode: BergsonMode) -> Any:
    from bergson import GradientProcessor
    from bergson.gradients import AdamNormalizer

    projection = {"projection_target": mode.target, "projection_dim": mode.dim} if mode.target else {}
    if not mode.adam:
        return GradientProcessor(**projection)
    sizes = [parameter.numel() for parameter in workload.model.parameters() if parameter.requires_grad]
    parts = torch.from_numpy(workload.moments.exp_avg_sq).split(sizes)
    return GradientProcessor(
        normalizers={
            name: AdamNormalizer(part.view(module.weight.shape).to(workload.device))
            for (name, module), part in zip(_adapter_modules(workload).items(), parts, strict=True)
        },
        **projection,
    )


def _adapter_modules(workload: Workload) -> dict[str, Any]:
    """Return the LoRA layers by bergson's name, in the order of the trainable parameters."""
    base: Any = workload.model.base_model
    return {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and module.weight.requires_grad
    }


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Hold back its progress bars and log lines, which would take time too."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
