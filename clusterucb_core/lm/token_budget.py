"""How many padded tokens of one forward and backward pass fit into a device's memory."""

from typing import TYPE_CHECKING, Literal

from clusterucb_core.lm.loading import load_config
from clusterucb_core.lm.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CPU_BATCH_TOKENS = 2048  # more leave the cache, fewer use the cores badly: benchmarks/featurize.py
FEWEST_TOKENS, MOST_TOKENS = 1024, 65536
MEMORY_SHARE = 0.5  # of what the weights leave: attention, projections and fragments take the rest
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def activation_bytes_per_token(config: "PreTrainedConfig", element_size: int) -> int:
    """Return about what is kept for one token of a backward pass, in bytes.

    A layer keeps about 16 activations of the hidden size and 4 of the inner size; logits are held three times
    in float32.

    Args:
        config: of the model.
        element_size: bytes of an activation.
    """
    text = config.get_text_config()
    hidden, layers = int(text.hidden_size), int(text.num_hidden_layers)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    return layers * (16 * hidden + 4 * inner) * element_size + 12 * int(text.vocab_size)


def batch_tokens(
    wanted: int | Literal["auto"], settings: ModelSettings, *, n_parameters: int, device: str
) -> int:
    """Return the padded tokens of one batch.

    `auto` on a GPU follows from the model's shape and the whole memory of the GPU, not from what is free at
    the moment, so that one kind of GPU always plans the same batches. Where other programs use the GPU too, a
    batch that does not fit is halved.

    Args:
        wanted: `execution.max_batch_tokens`.
        settings: of the model, its precision resolved.
        n_parameters: of the base model.
        device: `cpu`, `cuda` or `cuda:<number>`.

    Returns:
        `wanted` where it is a number; otherwise a power of two from 1,024 to 65,536 on a GPU, 2,048 on a CPU.
    """
    if wanted != "auto":
        return wanted
    if not device.startswith("cuda"):
        return CPU_BATCH_TOKENS
    import torch

    memory = torch.cuda.get_device_properties(torch.device(device)).total_memory
    element_size = _BYTES.get(settings.dtype, 4)
    left = MEMORY_SHARE * (memory - n_parameters * element_size)
    tokens = int(left / activation_bytes_per_token(load_config(settings), element_size))
    if tokens < FEWEST_TOKENS:
        return FEWEST_TOKENS
    return min(MOST_TOKENS, 1 << (tokens.bit_length() - 1))
