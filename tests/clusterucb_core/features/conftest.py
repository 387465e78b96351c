"""Tiny random models with trained-looking adapters, ragged samples, and a plain autograd reference."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

from clusterucb_core.records import TokenizedSample

VOCABULARY = 61
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture
def make_model():
    """Build one of the small architectures with a LoRA adapter whose matrices are all non-zero."""

    def make(kind="llama", *, dtype=torch.float32, config=None, **lora):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        base, targets = _base(kind, config or {})
        settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.3, "target_modules": targets} | lora
        settings["fan_in_fan_out"] = kind == "gpt2"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            model = get_peft_model(base, LoraConfig(**settings))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        return model.to(dtype).train()

    return make


def _base(kind, changes):
    import transformers as hf

    small = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    } | changes
    match kind:
        case "llama":
            return hf.LlamaForCausalLM(hf.LlamaConfig(**small)), ATTENTION
        case "mistral":
            return hf.MistralForCausalLM(hf.MistralConfig(sliding_window=8, **small)), ATTENTION
        case "qwen2":
            return hf.Qwen2ForCausalLM(hf.Qwen2Config(**small)), ATTENTION
        case "qwen3":
            return hf.Qwen3ForCausalLM(hf.Qwen3Config(head_dim=8, **small)), ATTENTION
        case "gemma2":
            config = hf.Gemma2Config(head_dim=8, final_logit_softcapping=2.0, sliding_window=8, **small)
            return hf.Gemma2ForCausalLM(config), ATTENTION
        case "mixtral":
            return hf.MixtralForCausalLM(hf.MixtralConfig(num_local_experts=3, **small)), ATTENTION
        case "gpt2":
            config = hf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
            return hf.GPT2LMHeadModel(config), ["c_attn", "c_proj"]
        case "phi":
            del small["num_key_value_heads"]
            return hf.PhiForCausalLM(hf.PhiConfig(**small)), ["q_proj", "v_proj", "dense"]


@pytest.fixture
def make_samples():
    """Build samples of given lengths; each masks about a third, and its label at position 0 is set."""

    def make(lengths=(5, 23, 12, 9, 17, 12, 3), seed=0):
        rng = np.random.default_rng(seed)
        samples = []
        for index, length in enumerate(lengths):
            ids = rng.integers(0, VOCABULARY, length)
            labels = ids.copy()
            labels[1 : 1 + length // 3] = -100
            samples.append(TokenizedSample(f"sample-{seed}-{index:03}", ids, labels))
        return samples

    return make


@pytest.fixture
def autograd():
    """Compute per-sample gradients with the model's own forward, one unpadded sample at a time."""

    def compute(model, samples):
        rows = []
        mode = model.training
        model.eval()
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for sample in samples:
            logits = model(input_ids=torch.as_tensor(sample.input_ids)[None], use_cache=False).logits[0, :-1]
            targets = torch.as_tensor(sample.labels)[1:]
            logits = logits.double() if logits.dtype == torch.float64 else logits.float()
            loss = functional.cross_entropy(logits[targets != -100], targets[targets != -100])
            parts = torch.autograd.grad(loss, trainable, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([part.flatten() for part in parts]))
        model.train(mode)
        return torch.stack(rows)

    return compute


def relative_error(found, expected):
    """Return the largest entry error of any row, relative to that row's largest entry."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    return float(((found - expected).abs().amax(1) / expected.abs().amax(1)).max())


@pytest.fixture
def error_of():
    return relative_error
