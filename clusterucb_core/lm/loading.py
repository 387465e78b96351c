"""Base models and tokenizers from a folder or the Hugging Face hub, safetensors only.

Files read: those of the model's folder, or of the hub's cache; the hub is asked where the model is no folder.
"""

import json
import logging
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from clusterucb_core.artifacts import file_digest, fingerprint
from clusterucb_core.errors import InvalidConfig, InvalidModel
from clusterucb_core.lm.own_code import AUTO_MAP, may_run_code, refuse_code_of_hub
from clusterucb_core.lm.settings import ModelSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Building a model swaps torch's default type and transformers' tying of weights for the whole process: of two
# threads at it one gets a model that lacks weights. So one builds at a time.
BUILDING = threading.RLock()
FINGERPRINT_FILES = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "*.safetensors",
    "*.safetensors.index.json",
)
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
POSITION_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
# `name` or `owner/name`, as the hub spells ids.
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def resolve_device(name: str) -> str:
    """Return the device that a name means: `auto` is `cuda` where there is one, else `cpu`.

    Raises:
        InvalidConfig: the name is unknown, or that device is not here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise InvalidConfig(f"device={name!r} is unknown; use auto, cpu, cuda or cuda:<number>")
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match.group(1) or 0) >= present:
        raise InvalidConfig(
            f"device={name!r} is not here ({present} CUDA devices are visible); use auto or cpu"
        )
    return name


def resolve_dtype(settings: ModelSettings, device: str) -> ModelSettings:
    """Return the settings with a concrete precision.

    Args:
        settings: unchanged where their precision is not `auto`.
        device: a resolved device name.
    """
    import torch

    if settings.dtype != "auto":
        return settings
    half = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return settings.model_copy(update={"dtype": "bfloat16" if half else "float32"})


def model_fingerprint(base: str) -> str:
    """Return a name for the content of a base model and its tokenizer.

    A folder is named by the SHA-256 digests of its configuration, tokenizer and safetensors files, a hub id
    by the commit that it resolves to (the cached one where the hub cannot be reached).

    Raises:
        InvalidModel: there is no such folder and no such hub model.
    """
    folder = find_folder(base)
    if folder is None:
        return fingerprint("hub", base, _hub_commit(base))
    _require_safetensors(folder)
    files = {
        path.name: path for pattern in FINGERPRINT_FILES for path in folder.glob(pattern) if path.is_file()
    }
    return fingerprint("folder", {name: file_digest(files[name]) for name in sorted(files)})


def find_folder(base: str) -> Path | None:
    """Return the folder that a base names, or None for a hub id.

    Raises:
        InvalidModel: it can only be a folder, and is none.
    """
    path = Path(base).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InvalidModel(f"model.base={base!r} is a file; give the folder that holds config.json")
    if HUB_ID.fullmatch(base):
        return None
    raise InvalidModel(
        f"model.base={base!r} does not exist; give a model folder or a hub id such as owner/name"
    )


def load_tokenizer(settings: ModelSettings) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of the base model.

    Raises:
        InvalidModel: it is absent, cannot be read, or brings code that is not allowed.
    """
    from transformers import AutoTokenizer

    trusted = runs_own_code(settings)
    with _explained(settings.base, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(_source(settings.base), trust_remote_code=trusted)
    if not trusted:
        refuse_code_of_hub(settings.base, tokenizer.init_kwargs.get(AUTO_MAP))
    return cast("PreTrainedTokenizerBase", tokenizer)


def runs_own_code(settings: ModelSettings) -> bool:
    """Return whether transformers is to run code that the base model brings along; on the hub, none is.

    It has to be told no: left to itself, it asks whoever is at the terminal.

    Raises:
        InvalidModel: the folder brings code that the settings do not name.
    """
    folder = find_folder(settings.base)
    return folder is not None and may_run_code(folder, settings.trusted_code)


def load_config(settings: ModelSettings) -> "PreTrainedConfig":
    """Load the configuration of the base model and compare the length limit with it.

    Raises:
        InvalidModel: it is absent, cannot be read, names code that is not allowed, or has fewer positions
            than `max_length`.
    """
    config = _read_config(settings)
    positions = _positions(config)
    if positions is not None and settings.max_length > positions:
        raise InvalidModel(
            f"model.max_length={settings.max_length} is above the {positions} positions of {settings.base}; "
            f"set it to {positions} or less"
        )
    return config


def position_limit(settings: ModelSettings) -> int | None:
    """Return how many tokens the base model reads, or None where its configuration sets no limit.

    Raises:
        InvalidModel: its configuration is absent or cannot be read.
    """
    return _positions(_read_config(settings))


def _read_config(settings: ModelSettings) -> "PreTrainedConfig":
    from transformers import AutoConfig

    trusted = runs_own_code(settings)
    with _explained(settings.base, "config.json"):
        config = AutoConfig.from_pretrained(_source(settings.base), trust_remote_code=trusted)
    if not trusted:
        refuse_code_of_hub(settings.base, getattr(config, AUTO_MAP, None))
    return cast("PreTrainedConfig", config)


def _positions(config: "PreTrainedConfig") -> int | None:
    limits = [getattr(config.get_text_config(), name, None) for name in POSITION_LIMITS]
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def load_base(settings: ModelSettings, device: str) -> "PreTrainedModel":
    """Load the base model in evaluation mode.

    Args:
        settings: a precision of `auto` is resolved for the device.
        device: a resolved device name.

    Raises:
        InvalidModel: weights are absent, not safetensors, damaged or incomplete, or the hub cannot be
            reached.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(settings)
    folder = find_folder(settings.base)
    if folder is not None:
        _require_safetensors(folder)
    trusted = runs_own_code(settings)
    with BUILDING, _explained(settings.base, "weights"), _quiet_progress():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            _source(settings.base),
            config=config,
            dtype=torch_dtype(settings, device),
            use_safetensors=True,
            trust_remote_code=trusted,
            output_loading_info=True,
        )
    model, info = loaded
    _require_complete(settings.base, info)
    return cast("PreTrainedModel", model.to(device).eval())


def torch_dtype(settings: ModelSettings, device: str) -> "torch.dtype":
    """Return the precision of the settings on a device as PyTorch names it."""
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return names[resolve_dtype(settings, device).dtype]


def _source(base: str) -> str:
    folder = find_folder(base)
    return base if folder is None else str(folder)


def _require_safetensors(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InvalidModel(f"{folder} holds no config.json; give the folder of a saved model")
    if (folder / ADAPTER_CONFIG).is_file():
        raise InvalidModel(
            f"{folder} holds an {ADAPTER_CONFIG}, so transformers would load the model it names, wherever "
            "that is; give the folder of a base model, or merge the adapter into it and save that"
        )
    if any(folder.glob("*.safetensors")):
        _require_weights_inside(folder)
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    seen = (
        f"only {', '.join(pickled[:3])}, which can run code when loaded" if pickled else "no weights at all"
    )
    raise InvalidModel(
        f"{folder} holds no safetensors file ({seen}); save the model again with "
        "save_pretrained(safe_serialization=True)"
    )


def _require_weights_inside(folder: Path) -> None:
    """Refuse an index that names files elsewhere: the model's name would not cover what is in them."""
    path = folder / WEIGHTS_INDEX
    if not path.is_file():
        return
    try:
        names = {str(name) for name in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModel(
            f"{path} is no index of weights ({error}); download or save the model again"
        ) from error
    if outside := sorted(name for name in names if "/" in name or "\\" in name):
        raise InvalidModel(
            f"{path} names {outside[0]!r}, which is no file of the folder; save the model again"
        )


def _require_complete(base: str, info: dict[str, Any]) -> None:
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(map(str, info.get(problem) or ()))
        if names:
            raise InvalidModel(
                f"the weights of {base} do not fit its config.json: {len(names)} "
                f"{problem.replace('_', ' ')}, such as {names[0]}; download or save the model again"
            )


def _hub_commit(base: str) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        commit = HfApi().model_info(base).sha
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _unreachable(base, error) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        cached = try_to_load_from_cache(base, "config.json")
        if not isinstance(cached, str):
            raise _unreachable(base, error) from error
        commit = Path(cached).parent.name
        logger.warning(
            "the hub cannot be reached (%s); using the cached commit %s of %s", error, commit, base
        )
    if not commit:
        raise InvalidModel(f"the hub names no commit for {base}; check the id")
    return commit


def _unreachable(base: str, error: Exception) -> InvalidModel:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InvalidModel(
        f"model.base={base!r} is no folder here and the hub gave no such model ({first_line}); check the "
        "spelling, the network and access rights, or give a folder"
    )


@contextmanager
def _explained(base: str, part: str) -> Generator[None]:
    """Turn what the loading libraries raise into one clear error."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        if find_folder(base) is None:
            if "custom code" in str(error):
                refuse_code_of_hub(base, [str(error).strip().splitlines()[0]])
            raise _unreachable(base, error) from error
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidModel(
            f"the {part} of {base} cannot be loaded ({first_line}); the files are damaged, incomplete or of "
            "an architecture that transformers does not know: download or save the model again"
        ) from error


@contextmanager
def _quiet_progress() -> Generator[None]:
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
