"""Checkpoints of a LoRA training: adapter, Adam moments and what is known of the epoch; no pickles.

Files of a checkpoint folder: `adapter_model.safetensors` and `adapter_config.json` (as peft names them),
`moments.safetensors` (keys `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step`), `checkpoint.json`, which
is written last and holds the digests of the others. The folder appears whole or not at all.
"""

import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from clusterucb_core.errors import InvalidModel, MissingArtifact, StaleArtifact, TrainingDiverged
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from clusterucb_core.records import FloatArray
from clusterucb_core.seals import FileDigest, check_digests, digest_files, digested_text, read_digested

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

MOMENTS = "moments.safetensors"
CHECKPOINT = "checkpoint.json"
_KINDS = ("exp_avg", "exp_avg_sq")


class StepRecord(Frozen):
    """One optimiser step: its number in the whole schedule, mean loss in nats per token, learning rate."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and what is known of it.

    Attributes:
        folder: where it lies.
        step: optimiser steps of the whole schedule that lie behind it.
        epoch: its number in its training, from 1.
        mean_learning_rate: mean over the optimiser steps of its epoch or segment.
        total_steps: length of the whole schedule.
    """

    folder: Path
    step: int
    epoch: int
    mean_learning_rate: float
    total_steps: int


class _Description(Frozen):
    step: int
    epoch: int
    mean_learning_rate: float
    total_steps: int
    history: tuple[StepRecord, ...]
    files: dict[str, FileDigest]


def save_checkpoint(
    folder: Path,
    model: "PeftModel",
    optimizer: "torch.optim.Optimizer",
    *,
    epoch: int,
    total_steps: int,
    history: Sequence[StepRecord],
) -> Checkpoint:
    """Write a checkpoint; one that lies in the folder already is replaced.

    Args:
        folder: where it is to lie.
        model: its trainable parameters are the adapter.
        optimizer: an Adam optimiser that has taken a step.
        epoch: number of the epoch or segment, from 1.
        total_steps: length of the whole schedule.
        history: the steps of this epoch or segment, at least one.

    Raises:
        InvalidModel: a parameter never received a gradient.
        TrainingDiverged: an adapter weight or moment is not finite.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    draft.mkdir()
    try:
        _write_adapter(draft, model)
        _write_moments(draft, model, optimizer)
        description = _Description(
            step=history[-1].step,
            epoch=epoch,
            mean_learning_rate=float(np.mean([record.learning_rate for record in history])),
            total_steps=total_steps,
            history=tuple(history),
            files=digest_files(draft),
        )
        (draft / CHECKPOINT).write_text(digested_text(description.model_dump(mode="json")), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _checkpoint(folder, description)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return what is known of a checkpoint whose adapter and moments are what was written.

    Raises:
        MissingArtifact: the folder holds no finished checkpoint.
        StaleArtifact: its description, its adapter or its moments are damaged.
    """
    description = _describe(folder)
    try:
        check_digests(folder, description.files)
    except StaleArtifact as error:
        raise StaleArtifact(f"{error}; delete the checkpoint and run again") from error
    return _checkpoint(folder, description)


def read_history(folder: Path) -> tuple[StepRecord, ...]:
    """Return the optimiser steps of a checkpoint's epoch or segment; raises as `read_checkpoint`."""
    return _describe(folder).history


def read_moments(folder: Path, model: "PeftModel") -> tuple[FloatArray, FloatArray]:
    """Return Adam's moments, float32 [p] each, in the order of the trainable `model.named_parameters()`.

    Raises:
        MissingArtifact: the folder holds no moments.
        StaleArtifact: their names or shapes do not fit the model.
    """
    moments = _load_moments(folder, model)
    names = [name for name, _ in _trainable(model)]
    first, second = (
        np.concatenate([moments[f"{kind}.{name}"].numpy().reshape(-1) for name in names]) for kind in _KINDS
    )
    return first, second


def restore_moments(folder: Path, model: "PeftModel", optimizer: "torch.optim.Optimizer") -> None:
    """Put the moments and the step count of a checkpoint into a fresh Adam optimiser.

    Raises:
        MissingArtifact: the folder holds no moments.
        StaleArtifact: their names or shapes do not fit the model.
    """
    moments = _load_moments(folder, model)
    for name, parameter in _trainable(model):
        state: dict[str, torch.Tensor] = {"step": moments["step"].clone()}
        for kind in _KINDS:
            state[kind] = moments[f"{kind}.{name}"].to(parameter.device, parameter.dtype)
        optimizer.state[parameter] = state


def _trainable(model: "PeftModel") -> "list[tuple[str, torch.nn.Parameter]]":
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _write_adapter(folder: Path, model: "PeftModel") -> None:
    # Not save_pretrained: it writes sets in hash order and a model card, and may ask the hub about the base.
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = {name: _plain(value) for name, value in get_peft_model_state_dict(model).items()}
    for name, value in weights.items():
        _require_finite(f"adapter weight {name}", value)
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config: dict[str, Any] = model.peft_config["default"].to_dict() | {"inference_mode": True}
    text = json.dumps(config, indent=1, sort_keys=True, default=_json_value)
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def _write_moments(folder: Path, model: "PeftModel", optimizer: "torch.optim.Optimizer") -> None:
    import torch
    from safetensors.torch import save_file

    moments: dict[str, torch.Tensor] = {}
    for name, parameter in _trainable(model):
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        if "exp_avg" not in state:
            raise InvalidModel(
                f"the parameter {name} received no gradient in training; take its module out of "
                "lora.target_modules"
            )
        for kind in _KINDS:
            moments[f"{kind}.{name}"] = _plain(state[kind]).float()
            _require_finite(f"Adam moment {kind} of {name}", moments[f"{kind}.{name}"])
        moments["step"] = torch.tensor(float(state["step"]), dtype=torch.float32)
    save_file(moments, folder / MOMENTS, metadata={"format": "pt"})


def _load_moments(folder: Path, model: "PeftModel") -> "dict[str, torch.Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / MOMENTS
    if not path.is_file():
        raise MissingArtifact(f"{path} is missing; run the pipeline again to rebuild the checkpoint")
    try:
        moments = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StaleArtifact(
            f"{path} cannot be read ({error}); delete the checkpoint and run again"
        ) from error
    wanted: dict[str, tuple[int, ...]] = {"step": ()}
    wanted |= {f"{kind}.{name}": tuple(p.shape) for name, p in _trainable(model) for kind in _KINDS}
    found = {name: tuple(value.shape) for name, value in moments.items()}
    if wanted != found:
        differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        raise StaleArtifact(
            f"{path} does not fit the model: {len(differing)} entries differ, such as {differing[0]} "
            f"(saved {found.get(differing[0])}, wanted {wanted.get(differing[0])}); delete the checkpoint "
            "and run again"
        )
    return moments


def _describe(folder: Path) -> _Description:
    path = folder / CHECKPOINT
    try:
        return _Description.model_validate(read_digested(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingArtifact(
            f"{path} is missing; run the pipeline again to rebuild the checkpoint"
        ) from error
    except (StaleArtifact, ValidationError) as error:
        raise StaleArtifact(
            f"{path} cannot be used ({error}); delete the checkpoint and run again"
        ) from error


def _checkpoint(folder: Path, description: _Description) -> Checkpoint:
    return Checkpoint(
        folder=folder,
        step=description.step,
        epoch=description.epoch,
        mean_learning_rate=description.mean_learning_rate,
        total_steps=description.total_steps,
    )


def _plain(value: "torch.Tensor") -> "torch.Tensor":
    return value.detach().to("cpu").contiguous()


def _require_finite(what: str, value: "torch.Tensor") -> None:
    if not bool(value.isfinite().all()):
        raise TrainingDiverged(
            f"{what} is not finite after training; lower the learning rate or use dtype float32"
        )


def _json_value(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return str(value)
