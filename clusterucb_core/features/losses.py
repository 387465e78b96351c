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
    return sample_means(token_losses(_supervised_logits(parts, batch), batch.targets), batch)


def sample_means(values: Tensor, batch: PaddedBatch) -> Tensor:
    """Return the mean [b, ...] over each sample's supervised positions of values [m, ...] at all of them."""
    # 1 / count must not be rounded to float32 for a float64 model
    weights = batch.counts.to(values.dtype).reciprocal()[batch.rows]
    weighted = values * weights.reshape(-1, *[1] * (values.ndim - 1))
    return values.new_zeros(len(batch.counts), *values.shape[1:]).index_add(0, batch.rows, weighted)


def _supervised_logits(parts: LossModel, batch: PaddedBatch) -> Tensor:
    if parts.body is None or parts.head is None:
        logits = parts.whole(**model_inputs(parts, batch)).logits
        return logits.reshape(-1, logits.shape[-1]).index_select(0, batch.positions)
    hidden = parts.body(**model_inputs(parts, batch)).last_hidden_state
    return head_logits(parts, hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.positions))


def model_inputs(parts: LossModel, batch: PaddedBatch) -> Mapping[str, Any]:
    """Return the keywords that a model, or its body, is called with."""
    mask = {"attention_mask": batch.attention_mask} if parts.pass_mask else {}
    return {"input_ids": batch.input_ids, "use_cache": False, **mask}


def head_logits(parts: LossModel, hidden: Tensor) -> Tensor:
    """Return the logits [m, vocabulary] of final hidden states [m, h] of a model whose head lies apart."""
    assert parts.head is not None, "only a head that lies apart can be called by itself"
    logits = parts.head(hidden)
    return logits if parts.soft_cap is None else torch.tanh(logits / parts.soft_cap) * parts.soft_cap


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy [m] of each target, in float64 for a float64 model, else in float32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide, targets, reduction="none")


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
