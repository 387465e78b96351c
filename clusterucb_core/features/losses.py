"""What one forward pass tells of each sample of a batch: its loss, and its mean final hidden state.

Both are means over the supervised positions, those whose next token counts.
"""

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

    `output` reads the final hidden states either way. `soft_cap` bounds the logits, as Gemma does.
    """

    whole: nn.Module
    embedding: nn.Module
    output: nn.Module
    body: nn.Module | None
    head: nn.Linear | None
    soft_cap: float | None
    pass_mask: bool
    device: torch.device
    limits: TokenLimits

    def plain(self) -> "LossModel":
        """Return the same model without any short cut: its own forward, with a mask."""
        return replace(self, body=None, head=None, pass_mask=True)


@dataclass(frozen=True)
class SampleReads:
    """Losses [b] with their graph, and mean final hidden states [b, h] without one."""

    losses: Tensor
    states: Tensor


def loss_model(model: nn.Module) -> LossModel:
    """Find out how to run a causal language model for per-sample losses.

    Args:
        model: a PEFT model, or the causal language model itself.

    Returns:
        The parts to call.

    Raises:
        InvalidModel: no input embedding, no output head, or a learned prompt in front.
    """
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise InvalidModel(f"the adapter {adapter.peft_type} is a learned prompt; use a LoRA adapter")
    causal = _causal_model(model)
    config = cast("Any", causal).config
    embedding = cast("Any", causal).get_input_embeddings()
    if not isinstance(embedding, nn.Module):
        raise InvalidModel(f"{type(causal).__name__} has no input embedding; use a causal language model")
    output = cast("Any", causal).get_output_embeddings()
    if not isinstance(output, nn.Module):
        raise InvalidModel(f"{type(causal).__name__} has no output head; use a causal language model")
    weight = cast("Tensor", getattr(embedding, "weight"))  # noqa: B009 (typed as Tensor | Module)
    body, head = _body_and_head(causal)
    bidirectional = bool(getattr(config, "use_bidirectional_attention", False))
    return LossModel(
        whole=model,
        embedding=embedding,
        output=output,
        body=body,
        head=head,
        soft_cap=config.final_logit_softcapping if type(causal).__name__ in _SOFT_CAPPED else None,
        pass_mask=config.model_type not in _CAUSAL or bidirectional,
        device=weight.device,
        limits=TokenLimits(weight.shape[0], getattr(config, "max_position_embeddings", None)),
    )


def hidden_width(model: nn.Module) -> int:
    """Return how wide the final hidden states are that a model's output head reads.

    Raises:
        InvalidModel: as in `loss_model`.
    """
    output = loss_model(model).output
    return int(getattr(output, "in_features", 0)) or int(cast("Tensor", output.weight).shape[1])


def read_samples(parts: LossModel, batch: PaddedBatch) -> SampleReads:
    """Return the mean cross-entropy of each sample over its supervised tokens, and its mean final state.

    Args:
        parts: from `loss_model`.
        batch: padded samples, each with at least one supervised token.

    Returns:
        Losses and states, float64 for a float64 model, else float32.
    """
    if parts.body is None or parts.head is None:
        logits, states = _run_whole(parts, batch)
    else:
        hidden = parts.body(**model_inputs(parts, batch)).last_hidden_state
        states = at_positions(hidden, batch)
        logits = head_logits(parts, states)
    losses = sample_means(token_losses(logits, batch.targets), batch)
    return SampleReads(losses, sample_means(states.detach().to(losses.dtype), batch))


def at_positions(values: Tensor, batch: PaddedBatch) -> Tensor:
    """Return the rows [m, ...] at the supervised positions of values [b, t, ...]."""
    return values.reshape(-1, values.shape[-1]).index_select(0, batch.positions)


def sample_means(values: Tensor, batch: PaddedBatch) -> Tensor:
    """Return the mean [b, ...] over each sample's supervised positions of values [m, ...] at all of them."""
    # 1 / count must not be rounded to float32 for a float64 model
    weights = batch.counts.to(values.dtype).reciprocal()[batch.rows]
    weighted = values * weights.reshape(-1, *[1] * (values.ndim - 1))
    return values.new_zeros(len(batch.counts), *values.shape[1:]).index_add(0, batch.rows, weighted)


def _run_whole(parts: LossModel, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
    """Return logits and final hidden states at the supervised positions of a model run as it is."""
    read: list[Tensor] = []
    handle = parts.output.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0].detach()))
    try:
        logits = parts.whole(**model_inputs(parts, batch)).logits
    finally:
        handle.remove()
    return at_positions(logits, batch), at_positions(read[-1], batch)


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
