"""The loss of each sample of a batch, one by one: the mean over its supervised tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clusterucb_core.errors import InvalidModel
from clusterucb_core.features.token_rows import PaddedBatch, TokenLimits

# Their forward is body, then lm_head, and nothing after it but the soft cap of Gemma (no logit scale): where
# the body is.
_BODIES = {
    "GPT2LMHeadModel": "transformer",
    "GPTNeoXForCausalLM": "gpt_neox",
    "Gemma2ForCausalLM": "model",
    "Gemma3ForCausalLM": "model",
    "LlamaForCausalLM": "model",
    "MistralForCausalLM": "model",
    "MixtralForCausalLM": "model",
    "Phi3ForCausalLM": "model",
    "Qwen2ForCausalLM": "model",
    "Qwen3ForCausalLM": "model",
    "Qwen3MoeForCausalLM": "model",
}
_SOFT_CAPPED = frozenset({"Gemma2ForCausalLM", "Gemma3ForCausalLM"})
# Strictly causal: what is padded on the right cannot reach a supervised position, mask or none.
_CAUSAL = frozenset(
    {
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "llama",
        "mistral",
        "mixtral",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
    }
)


@dataclass(frozen=True)
class LossModel:
    """How one model is run for its losses: `body` and `head` apart where that is exact, else `whole`.

    `soft_cap` bounds the logits of the head, as Gemma does.
    """

    whole: nn.Module
    embedding: nn.Module
    body: nn.Module | None
    head: nn.Linear | None
    soft_cap: float | None
    pass_mask: bool
    device: torch.device
    limits: TokenLimits

    def plain(self) -> "LossModel":
        """Return the same model without any short cut: its own forward, with a mask."""
        return replace(self, body=None, head=None, pass_mask=True)


def loss_model(model: nn.Module) -> LossModel:
    """Find out how to run a causal language model for per-sample losses.

    Args:
        model: a PEFT model, or the causal language model itself.

    Returns:
        The parts to call.

    Raises:
        InvalidModel: the model has no input embedding, or a learned prompt in front of it.
    """
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise InvalidModel(f"the adapter {adapter.peft_type} is a learned prompt; use a LoRA adapter")
    causal = _causal_model(model)
    config = cast("Any", causal).config
    embedding = cast("Any", causal).get_input_embeddings()
    if not isinstance(embedding, nn.Module):
        raise InvalidModel(f"{type(causal).__name__} has no input embedding; use a causal language model")
    weight = cast("Tensor", getattr(embedding, "weight"))  # noqa: B009 (typed as Tensor | Module)
    body, head = _body_and_head(causal)
    bidirectional = bool(getattr(config, "use_bidirectional_attention", False))
    return LossModel(
        whole=model,
        embedding=embedding,
        body=body,
        head=head,
        soft_cap=config.final_logit_softcapping if type(causal).__name__ in _SOFT_CAPPED else None,
        pass_mask=config.model_type not in _CAUSAL or bidirectional,
        device=weight.device,
        limits=TokenLimits(weight.shape[0], getattr(config, "max_position_embeddings", None)),
    )


def sample_losses(parts: LossModel, batch: PaddedBatch) -> Tensor:
    """Return the mean cross-entropy of each sample over its supervised tokens.

    Args:
        parts: from `loss_model`.
        batch: padded samples, each with at least one supervised token.

    Returns:
        Losses [b], float64 for a float64 model, else float32, with their graph.
    """
    logits = _supervised_logits(parts, batch)
    if logits.dtype != torch.float64:
        logits = logits.float()
    token_losses = functional.cross_entropy(logits, batch.targets, reduction="none")
    # 1 / count must not be rounded to float32 for a float64 model
    weights = batch.counts.to(token_losses.dtype).reciprocal()[batch.rows]
    return token_losses.new_zeros(len(batch.counts)).index_add(0, batch.rows, token_losses * weights)


def _supervised_logits(parts: LossModel, batch: PaddedBatch) -> Tensor:
    inputs: Mapping[str, Tensor] = {"input_ids": batch.input_ids}
    if parts.pass_mask:
        inputs = {**inputs, "attention_mask": batch.attention_mask}
    if parts.body is None or parts.head is None:
        logits = parts.whole(**inputs, use_cache=False).logits
        return logits.reshape(-1, logits.shape[-1]).index_select(0, batch.positions)
    hidden = parts.body(**inputs, use_cache=False).last_hidden_state
    logits = parts.head(hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.positions))
    return logits if parts.soft_cap is None else torch.tanh(logits / parts.soft_cap) * parts.soft_cap


def _causal_model(model: nn.Module) -> nn.Module:
    unwrap = getattr(model, "get_base_model", None)
    return cast("nn.Module", unwrap()) if callable(unwrap) else model


def _body_and_head(causal: nn.Module) -> tuple[nn.Module | None, nn.Linear | None]:
    if type(causal).__name__ not in _BODIES:
        return None, None
    body, head = getattr(causal, _BODIES[type(causal).__name__], None), getattr(causal, "lm_head", None)
    # a LoRA layer, a saved copy or an offloading hook is more than the plain matrix product
    if not isinstance(body, nn.Module) or type(head) is not nn.Linear or hasattr(head, "_hf_hook"):
        return None, None
    return body, head
