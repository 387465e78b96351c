"""LoRA adapters on a base model: new ones, saved ones, and their size."""

import difflib
import json
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from clusterucb_core.errors import InvalidModel, MissingArtifact, StaleArtifact
from clusterucb_core.lm.loading import (
    ADAPTER_CONFIG,
    BUILDING,
    load_base,
    load_config,
    load_tokenizer,
    model_fingerprint,
    resolve_device,
    resolve_dtype,
    runs_own_code,
)
from clusterucb_core.lm.settings import LoraSettings, ModelSettings
from clusterucb_core.seeds import child_seed

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

__all__ = [
    "LoraSettings",
    "ModelSettings",
    "count_lora_parameters",
    "load_adapter",
    "load_base",
    "load_config",
    "load_tokenizer",
    "model_fingerprint",
    "new_adapter",
    "resolve_device",
    "resolve_dtype",
]

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Only these appear in messages; others (norms, containers) can carry no adapter.
_ADAPTABLE = re.compile(r".*Linear.*|Conv1D|Embedding")


def new_adapter(settings: ModelSettings, device: str, seed: int) -> "PeftModel":
    """Return the base model with a fresh, trainable LoRA adapter, in float32.

    Args:
        settings: base model and adapter shape.
        device: a resolved device name.
        seed: the run's seed; the same seed gives the same adapter on every device.

    Raises:
        InvalidModel: the base model cannot be loaded or lacks a target module.
    """
    import torch

    model = load_base(settings, device)
    require_targets(model, settings.lora.target_modules)
    with BUILDING, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the CUDA generators; adapters are drawn on the CPU.
        torch.default_generator.manual_seed(child_seed(seed, "lora"))
        return adapt(model, settings.lora)


def load_adapter(settings: ModelSettings, folder: Path, device: str) -> "PeftModel":
    """Return the base model with a saved adapter, trainable.

    Args:
        settings: base model and adapter shape; the saved adapter must fit them.
        folder: a checkpoint folder.
        device: a resolved device name.

    Raises:
        MissingArtifact: the folder holds no adapter.
        StaleArtifact: the saved adapter does not fit the settings, or is damaged.
        InvalidModel: the base model cannot be loaded or lacks a target module.
    """
    saved = _read_weights(folder)
    _require_same_shape(settings.lora, folder)
    model = new_adapter(settings, device, seed=0)
    _load_weights(model, saved, folder)
    return model


def replace_adapter(model: "PeftModel", settings: ModelSettings, folder: Path) -> None:
    """Give a loaded model the weights of another saved adapter of the same shape, in place.

    Args:
        model: from `load_adapter` or `new_adapter`.
        settings: the settings that it was loaded with.
        folder: a checkpoint folder.

    Raises:
        MissingArtifact: the folder holds no adapter.
        StaleArtifact: the saved adapter does not fit the model, or is damaged.
    """
    saved = _read_weights(folder)
    _require_same_shape(settings.lora, folder)
    _load_weights(model, saved, folder)


def _load_weights(model: "PeftModel", saved: "dict[str, torch.Tensor]", folder: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(model).items()}
    found = {name: tuple(value.shape) for name, value in saved.items()}
    if expected != found:
        differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise StaleArtifact(
            f"the adapter in {folder} does not fit the model: {len(differing)} tensors differ, such as "
            f"{differing[0]} "
            f"(saved {found.get(differing[0])}, wanted {expected.get(differing[0])}); delete it and run again"
        )
    set_peft_model_state_dict(model, saved)


def count_lora_parameters(settings: ModelSettings) -> int:
    """Return the number of trainable parameters of the adapter, without loading any weights.

    Raises:
        InvalidModel: the model's configuration cannot be used or lacks a target module.
    """
    return count_parameters(settings)[1]


def count_parameters(settings: ModelSettings) -> tuple[int, int]:
    """Return the parameters of the base model and of its adapter, without loading any weights.

    Raises:
        InvalidModel: the model's configuration cannot be used or lacks a target module.
    """
    with _without_weights():
        model = _empty_base(settings)
        require_targets(model, settings.lora.target_modules)
        adapted = adapt(model, settings.lora, on_meta=True)
    lora = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    return sum(parameter.numel() for parameter in adapted.parameters()) - lora, lora


def count_base_parameters(settings: ModelSettings) -> int:
    """Return the parameters of the base model, without loading any weights.

    Raises:
        InvalidModel: the model's configuration cannot be used.
    """
    with _without_weights():
        return sum(parameter.numel() for parameter in _empty_base(settings).parameters())


@contextmanager
def _without_weights() -> Generator[None]:
    import torch
    from accelerate import init_empty_weights

    with BUILDING, torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        yield


def _empty_base(settings: ModelSettings) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    config = load_config(settings)
    try:
        return AutoModelForCausalLM.from_config(config, trust_remote_code=runs_own_code(settings))
    except ValueError as error:
        raise InvalidModel(
            f"{settings.base} is no causal language model that transformers knows ({str(error)[:200]}); "
            "use another"
        ) from error


def lora_config(lora: LoraSettings) -> "LoraConfig":
    """Return the adapter shape as peft wants it."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
    )


def adapt(model: "PreTrainedModel", lora: LoraSettings, *, on_meta: bool = False) -> "PeftModel":
    """Put a fresh adapter on a base model, drawn from the global generator; `on_meta`: without weights."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft asks for the old name of a property of the model.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return cast("PeftModel", get_peft_model(model, lora_config(lora), low_cpu_mem_usage=on_meta))


def require_targets(model: "torch.nn.Module", targets: tuple[str, ...]) -> None:
    """Check that every target module exists; peft itself is content with one.

    Raises:
        InvalidModel: a name matches no module; the message lists near matches or what there is.
    """
    names = [name for name, module in model.named_modules() if _ADAPTABLE.fullmatch(type(module).__name__)]
    known = sorted({name.rsplit(".", 1)[-1] for name in names} - {"lm_head", "embed_tokens"})
    for target in targets:
        if any(name == target or name.endswith(f".{target}") for name in names):
            continue
        near = difflib.get_close_matches(target, known)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise InvalidModel(
            f"lora.target_modules names {target!r}, which {type(model).__name__} does not have; {hint}"
            f"its linear modules are: {', '.join(known) or 'none'}"
        )


def _read_weights(folder: Path) -> "dict[str, torch.Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise MissingArtifact(f"{path} is missing; run the pipeline again to rebuild the checkpoint")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise StaleArtifact(
            f"{path} cannot be read ({error}); delete the checkpoint and run again"
        ) from error


def _require_same_shape(lora: LoraSettings, folder: Path) -> None:
    path = folder / ADAPTER_CONFIG
    try:
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingArtifact(
            f"{path} is missing; run the pipeline again to rebuild the checkpoint"
        ) from error
    except ValueError as error:
        raise StaleArtifact(f"{path} is no JSON ({error}); delete the checkpoint and run again") from error
    wanted = {"r": lora.r, "lora_alpha": lora.alpha, "target_modules": sorted(lora.target_modules)}
    found = {"r": saved.get("r"), "lora_alpha": saved.get("lora_alpha")}
    found["target_modules"] = sorted(saved.get("target_modules") or ())
    if wanted != found:
        raise StaleArtifact(
            f"the adapter in {folder} has {found}, the configuration asks for {wanted}; "
            "restore the old settings or train again"
        )
