"""Per-sample gradients against plain autograd, architecture by architecture, on tiny random models.

The reference is written out here: one sample, no padding, the model's own forward, an own cross-entropy and
`loss.backward()`. Token rows carry no padding and batches are padded on the right, so left padding cannot
occur: what is shown instead is that neither the order of the samples nor their companions change a gradient.
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint

from clusterucb_core.errors import InvalidModel
from clusterucb_core.features.engine import GradientEngine
from clusterucb_core.features.gradients import check_engine
from clusterucb_core.records import TokenizedSample

VOCABULARY = 64
WINDOW = 6  # below most of the lengths
LENGTHS = (5, 14, 9, 12, 3, 9)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CAPS = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0}

FAMILIES = {
    "gemma2": (hf.Gemma2Config, {"head_dim": 8, "sliding_window": WINDOW, **CAPS}),
    "gemma3": (hf.Gemma3TextConfig, {"head_dim": 8, "sliding_window": WINDOW, **CAPS}),
    "gpt2": (hf.GPT2Config, {"n_positions": 32}),
    "gpt_neox": (hf.GPTNeoXConfig, {}),
    "llama": (hf.LlamaConfig, {}),
    "mistral": (hf.MistralConfig, {"sliding_window": WINDOW}),
    "mixtral": (hf.MixtralConfig, {"num_local_experts": 4}),
    "opt": (hf.OPTConfig, {"ffn_dim": 40, "word_embed_proj_dim": 32, "max_position_embeddings": 32}),
    "phi3": (hf.Phi3Config, {"pad_token_id": 0}),
    "qwen2": (hf.Qwen2Config, {}),
    "qwen3": (hf.Qwen3Config, {"head_dim": 8}),
    "qwen3_moe": (
        hf.Qwen3MoeConfig,
        {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
}
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Case:
    """An architecture, its changes, an adapter, and the ways that its parameters must take."""

    family: str
    lora: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    ways: tuple[str, ...] = ("hook",)


UNTIED = {"tie_word_embeddings": False}
REPLAYED = {"ways": ("replay",)}
MIXED = {"ways": ("hook", "replay")}
CASES = {
    "llama with grouped queries": Case("llama"),
    "llama, eager attention": Case("llama", config={"attn_implementation": "eager"}),
    "qwen2": Case("qwen2"),
    "qwen3": Case("qwen3"),
    "mistral with a sliding window": Case("mistral"),
    "mistral, eager attention": Case("mistral", config={"attn_implementation": "eager"}),
    "gemma2": Case("gemma2"),
    "gemma2, no mask of eager attention": Case("gemma2", config={"attn_implementation": "eager"}),
    "gemma3": Case("gemma3"),
    "phi3, fused": Case("phi3", {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}),
    "gpt2": Case("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt_neox": Case("gpt_neox", {"target_modules": ["query_key_value", "dense", "dense_h_to_4h"]}),
    "opt, tokens on one axis": Case("opt", {"target_modules": ["q_proj", "fc1", "fc2"]}),
    "mixtral attention": Case("mixtral"),
    "qwen3_moe attention": Case("qwen3_moe"),
    "mixtral experts": Case("mixtral", {"target_parameters": EXPERTS}, **MIXED),
    "qwen3_moe experts": Case("qwen3_moe", {"target_parameters": EXPERTS[:1]}, **MIXED),
    "mixtral router": Case("mixtral", {"target_parameters": ["mlp.gate.weight"]}, **MIXED),
    "tied embeddings": Case("llama", config={"tie_word_embeddings": True}),
    "rank-stabilised": Case("llama", {"use_rslora": True}),
    "lm_head": Case("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "lm_head, gemma2": Case("gemma2", {"target_modules": ["q_proj", "lm_head"]}, UNTIED),
    "embedding": Case("llama", {"target_modules": ["q_proj", "embed_tokens"]}, **MIXED),
    "scaled embedding": Case("gemma3", {"target_modules": ["embed_tokens"]}, UNTIED, **REPLAYED),
    "dora": Case("llama", {"use_dora": True}, **REPLAYED),
    "dora, qkv of gpt2": Case(
        "gpt2", {"use_dora": True, "target_modules": ["c_attn"], "fan_in_fan_out": True}, **REPLAYED
    ),
    "saved norms": Case("llama", {"target_modules": ["v_proj"], "modules_to_save": ["norm"]}, **MIXED),
    "saved embedding and head": Case("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, **MIXED),
    "saved attention": Case(
        "qwen3",
        {"target_modules": ["up_proj"], "modules_to_save": ["self_attn"]},
        {"attn_implementation": "eager"},
        **MIXED,
    ),
    "biases of lora": Case("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}, **REPLAYED),
    "biases of the base": Case("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}, **REPLAYED),
}
PARAMETERS = [pytest.param(case, id=name) for name, case in CASES.items()]


def build(case, dtype=torch.float64):
    """Return the case's model, every trainable entry of which is random and takes part."""
    torch.manual_seed(0)
    make_config, extra = FAMILIES[case.family]
    lora = {"target_modules": ATTENTION, "lora_dropout": 0.0 if "target_parameters" in case.lora else 0.3}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        base = hf.AutoModelForCausalLM.from_config(make_config(**(SMALL | extra | case.config)))
        model = get_peft_model(base, LoraConfig(r=2, lora_alpha=8, **(lora | case.lora)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    if dtype == torch.float64:  # the grouped kernels of experts know no float64
        base.config._experts_implementation = "eager"
    return model.to(dtype).train()


@pytest.fixture(scope="module")
def samples():
    """Six samples of mixed lengths; about a third of each is masked, and the label at position 0 is set."""
    rng = np.random.default_rng(0)
    rows = []
    for index, length in enumerate(LENGTHS):
        labels = (ids := rng.integers(0, VOCABULARY, length)).copy()
        labels[1 : 1 + length // 3] = -100
        rows.append(TokenizedSample(f"sample {index}", ids, labels))
    return rows


def by_autograd(model, samples):
    """Return the gradients of one sample after the other, [n, p]."""
    rows = []
    model.eval()
    for sample in samples:
        ids, labels = torch.as_tensor(sample.input_ids), torch.as_tensor(sample.labels)
        inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        logits = model(**inputs, use_cache=False).logits[0]
        if logits.dtype != torch.float64:
            logits = logits.float()
        log_shares = torch.log_softmax(logits[:-1], dim=-1).gather(1, labels[1:, None].clamp(min=0))[:, 0]
        supervised = labels[1:] != -100
        loss = -(log_shares * supervised).sum() / supervised.sum()
        model.zero_grad()
        loss.backward()
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainable]
        rows.append(torch.cat([part.flatten() for part in parts]))
    model.zero_grad()
    model.train()
    return torch.stack(rows)


@pytest.fixture
def in_double(monkeypatch):
    """Keep float64 models in float64: many round to float32 within, where two ways cannot agree to 1e-12."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def relative_error(found, expected):
    found, expected = found.double(), expected.double()
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("case", PARAMETERS)
def test_gradients_equal_autograd_in_float64_and_take_the_expected_ways(case, samples):
    model = build(case)
    engine = GradientEngine(model)
    found = engine.gradients(samples).features
    expected = by_autograd(model, samples)
    error = relative_error(found, expected)
    assert error < 1e-12, (
        f"{error}: 1e-8 is a count in float32; 1e-1 a mask, a soft cap, a scaling or a layer"
    )
    assert set(engine.ways.values()) == set(case.ways)
    assert expected.norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("case", PARAMETERS)
def test_gradients_equal_autograd_in_float32(case, samples):
    model = build(case, torch.float32)
    found = GradientEngine(model).gradients(samples).features
    assert relative_error(found, by_autograd(model, samples)) < 1e-5


@pytest.mark.parametrize("case", PARAMETERS)
def test_gradients_point_the_same_way_as_those_of_autograd_in_bf16(case, samples):
    model = build(case, torch.bfloat16)
    engine = GradientEngine(model)
    cosines = torch.cosine_similarity(engine.gradients(samples).features, by_autograd(model, samples).float())
    assert cosines.min() > 0.999
    assert set(engine.ways.values()) == set(case.ways)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", ["mistral with a sliding window", "gpt2", "qwen3_moe experts", "dora"])
def test_neither_order_nor_companions_change_a_gradient(name, samples):
    engine = GradientEngine(build(CASES[name]))
    whole = engine.gradients(samples).features
    turned = engine.gradients(samples[::-1]).features.flip(0)
    alone = torch.cat([engine.gradients([sample]).features for sample in samples])
    pairs = torch.cat([engine.gradients(samples[i : i + 2]).features for i in (0, 2, 4)])
    for other in (turned, alone, pairs):
        assert relative_error(other, whole) < 1e-12


def share_attention(model):
    layers = model.get_base_model().model.layers
    layers[1].self_attn = layers[0].self_attn


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", ["llama with grouped queries", "dora"])
def test_a_layer_in_two_blocks_gets_the_sum_of_both_calls(name, samples):
    model = build(CASES[name])
    share_attention(model)
    engine = GradientEngine(model)
    error = relative_error(engine.gradients(samples).features, by_autograd(model, samples))
    assert error < 1e-12, f"{error}: about 0.7 is one call of the two"
    assert set(engine.ways.values()) == set(CASES[name].ways)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama with grouped queries", "mixtral experts", "saved attention"])
@pytest.mark.parametrize("shared", [False, True])
def test_checkpointed_blocks_take_the_same_ways_to_the_same_gradients(name, reentrant, shared, samples):
    model = build(CASES[name])
    if shared:
        share_attention(model)
    expected = by_autograd(model, samples)
    for block in model.get_base_model().model.layers:
        block.forward = checkpointed(block.forward, reentrant)
    engine = GradientEngine(model)
    error = relative_error(engine.gradients(samples).features, expected)
    assert error < 1e-12
    assert set(engine.ways.values()) == set(CASES[name].ways)


def checkpointed(forward, reentrant):
    def run(hidden, **kwargs):
        return checkpoint(lambda states: forward(states, **kwargs), hidden, use_reentrant=reentrant)

    return run


@pytest.mark.usefixtures("in_double")
def test_checkpointing_as_switched_on_in_the_model_changes_nothing(samples):
    model = build(CASES["llama with grouped queries"])
    expected = by_autograd(model, samples)
    model.get_base_model().activation_checkpointing_enable()
    found = GradientEngine(model).gradients(samples).features
    assert relative_error(found, expected) < 1e-12


@pytest.mark.usefixtures("in_double")
def test_as_many_samples_as_tokens_are_not_mistaken_for_each_other(samples):
    rows = [samples[i] for i in (0, 4, 4, 0, 0)]
    assert len(rows) == max(len(row.input_ids) for row in rows)
    model = build(CASES["saved attention"])
    found = GradientEngine(model).gradients(rows).features
    assert relative_error(found, by_autograd(model, rows)) < 1e-12


def test_a_layer_that_mixes_samples_is_differentiated_sample_by_sample(samples, caplog):
    model = build(CASES["saved norms"])
    norm = model.get_base_model().model.norm
    own = norm.forward
    # by its companions, a sample of a batch is moved; alone it is not
    norm.forward = lambda hidden: own(hidden) * (1 + (hidden - hidden[:1]).abs().mean())
    engine = GradientEngine(model)
    found = engine.gradients(samples).features
    assert set(engine.ways.values()) == {"one_by_one"}
    assert "model.norm gives another output for a sample alone" in caplog.text
    assert "each sample gets a backward pass of its own" in caplog.text
    assert relative_error(found, by_autograd(model, samples)) < 1e-6


@pytest.mark.usefixtures("in_double")
def test_tokens_of_all_samples_in_another_order_are_found_out(samples, caplog):
    model = build(CASES["opt, tokens on one axis"])
    block = model.get_base_model().model.decoder.layers[0]
    block.fc1.register_forward_pre_hook(lambda _, given: (given[0].flip(0),))
    block.fc1.register_forward_hook(lambda _, given, output: output.flip(0))
    engine = GradientEngine(model)
    found = engine.gradients(samples).features
    assert relative_error(found, by_autograd(model, samples)) < 1e-12
    assert set(engine.ways.values()) == {"one_by_one"}
    assert "in an order of its own" in caplog.text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda weight: weight.to("meta"), "meta device"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda weight: weight[:0], "empty here"),
    ],
)
def test_a_layer_without_gradients_is_refused_by_name_before_any_work(change, problem):
    model = build(CASES["llama with grouped queries"])
    layer = model.get_base_model().model.layers[1].self_attn.v_proj.lora_A["default"]
    layer.weight = torch.nn.Parameter(change(layer.weight.detach()))
    with pytest.raises(InvalidModel, match=rf"layers\.1\.self_attn\.v_proj\.lora_A.*{problem}"):
        GradientEngine(model)


def test_lora_on_a_base_in_four_bits_uses_hooks(samples):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="4-bit layers need bitsandbytes")
    # its blocks hold 64 weights of a row
    model = build(Case("llama", config={"hidden_size": 64}), torch.float32)
    for block in model.get_base_model().model.layers:
        for name in ATTENTION:
            adapter = getattr(block.self_attn, name)
            adapter.base_layer = in_four_bits(bitsandbytes, adapter.base_layer)
    engine = GradientEngine(model)
    check_engine(model, samples)
    found = engine.gradients(samples).features
    assert set(engine.ways.values()) == {"hook"}
    # on some processors its products are rounded to bf16
    assert torch.cosine_similarity(found, by_autograd(model, samples)).min() > 0.999


def in_four_bits(bitsandbytes, linear):
    small = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
    )
    small.weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    return small.to("cpu")
