"""The part of the configuration that names the model, its adapter and its template."""

from typing import Literal

from pydantic import Field

from clusterucb_core.frozen import Frozen


class LoraSettings(Frozen):
    """Shape of the LoRA adapter."""

    r: int = Field(default=128, ge=1, le=4096, title="Rank", description="Rank of the two adapter matrices.")
    alpha: int = Field(
        default=512, ge=1, title="Alpha", description="The adapter's output is scaled by alpha / rank."
    )
    dropout: float = Field(
        default=0.1, ge=0.0, lt=1.0, title="Dropout", description="Dropout before the adapter while training."
    )
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj"),
        min_length=1,
        title="Target modules",
        description="Names of the linear modules that get an adapter.",
    )


class ModelSettings(Frozen):
    """The base model, the precision it runs in, and how conversations become tokens."""

    base: str = Field(
        min_length=1,
        title="Base model",
        description=(
            "Folder of a causal language model with safetensors weights, or its id on the Hugging Face hub."
        ),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        title="Precision",
        description=(
            "Precision of the base weights; auto is bfloat16 on a GPU that supports it, else float32."
        ),
    )
    max_length: int = Field(
        default=2048,
        ge=2,
        title="Longest sample",
        description="Limit in tokens; longer prompts are cut from the left.",
    )
    lora: LoraSettings = Field(default=LoraSettings(), title="LoRA", description="Shape of the LoRA adapter.")
    chat_template: str | None = Field(
        default=None,
        title="Chat template",
        description=(
            "Jinja template or the path of a file with one; empty for the tokenizer's own or a plain default."
        ),
    )
    trusted_code: tuple[str, ...] = Field(
        default=(),
        title="Trusted code",
        description=(
            "Names of Python code in model folders that may run, as the error says them that refuses it. "
            "Code runs with the rights of whoever runs the pipeline."
        ),
    )
