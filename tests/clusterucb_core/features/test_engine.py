import numpy as np
import pytest
import torch

from clusterucb_core.features.engine import GradientEngine
from clusterucb_core.records import TokenizedSample

MODELS = [
    ("llama", {}, {}),
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}, {"use_rslora": True}),
    ("llama", {}, {"target_modules": "all-linear"}),
    ("llama", {}, {"target_modules": ["q_proj", "lm_head"]}),
    ("mistral", {}, {}),
    ("qwen2", {}, {}),
    ("qwen3", {}, {}),
    ("gpt2", {}, {}),
    ("phi", {}, {}),
]
# Their eager softmax or expert kernels know no float64.
SINGLE_PRECISION = [
    ("llama", {"attn_implementation": "eager"}, {}),
    ("gemma2", {}, {}),
    ("mixtral", {}, {}),
]
FALLBACKS = [
    ("llama", {"use_dora": True}),
    ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}),
    ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
]


@pytest.mark.parametrize(("kind", "config", "lora"), MODELS)
def test_hooked_gradients_equal_autograd_in_float64(
    make_model, make_samples, autograd, error_of, kind, config, lora
):
    model = make_model(kind, dtype=torch.float64, config=config, **lora)
    engine = GradientEngine(model)
    found = engine.gradients(make_samples()).features
    assert engine.hooks_are_exact
    error = error_of(found, autograd(model, make_samples()))
    assert error < 1e-12, f"{error}: 1e-8 is a count in float32; 1e-1 is a mask, a soft cap or a scaling lost"


@pytest.mark.parametrize(("kind", "config", "lora"), MODELS + SINGLE_PRECISION)
def test_hooked_gradients_equal_autograd_in_float32(
    make_model, make_samples, autograd, error_of, kind, config, lora
):
    model = make_model(kind, config=config, **lora)
    found = GradientEngine(model).gradients(make_samples()).features
    assert found.dtype == torch.float32
    assert error_of(found, autograd(model, make_samples())) < 1e-5


@pytest.mark.parametrize(("kind", "lora"), FALLBACKS)
def test_parameters_that_no_hook_claims_get_exact_gradients_and_a_warning(
    make_model, make_samples, autograd, error_of, caplog, kind, lora
):
    model = make_model(kind, dtype=torch.float64, **lora)
    engine = GradientEngine(model)
    found = engine.gradients(make_samples((5, 9))).features
    assert not engine.hooks_are_exact
    assert "which is slower" in caplog.text
    assert error_of(found, autograd(model, make_samples((5, 9)))) < 1e-12


def test_lora_on_fused_experts_is_found_out_when_no_hook_fires(make_model, make_samples, autograd, error_of):
    model = make_model(
        "mixtral",
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj"],
        lora_dropout=0.0,
    )
    found = GradientEngine(model).gradients(make_samples((5, 9))).features
    assert error_of(found, autograd(model, make_samples((5, 9)))) < 1e-5


def test_a_block_that_runs_twice_adds_its_gradients_up(make_model, make_samples, autograd, error_of):
    model = make_model(dtype=torch.float64)
    layers = model.get_base_model().model.layers
    layers[1] = layers[0]
    engine = GradientEngine(model)
    found = engine.gradients(make_samples()).features
    assert engine.hooks_are_exact
    assert error_of(found, autograd(model, make_samples())) < 1e-12, (
        "0.5: the second call overwrote the first"
    )


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_give_the_same_gradients(make_model, make_samples, autograd, error_of, reentrant):
    model = make_model(dtype=torch.float64)
    expected = autograd(model, make_samples())
    for layer in model.get_base_model().model.layers:
        layer.forward = _checkpointed(layer.forward, reentrant)
    assert error_of(GradientEngine(model).gradients(make_samples()).features, expected) < 1e-12


def _checkpointed(forward, reentrant):
    from torch.utils.checkpoint import checkpoint

    def run(hidden, **kwargs):
        return checkpoint(lambda states: forward(states, **kwargs), hidden, use_reentrant=reentrant)

    return run


def test_an_inactive_adapter_takes_no_part(make_model, make_samples, autograd, error_of):
    from peft import LoraConfig

    model = make_model(dtype=torch.float64)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    found = GradientEngine(model).gradients(make_samples()).features
    assert error_of(found, autograd(model, make_samples())) < 1e-12


def test_only_the_active_adapter_among_two_gets_gradients(make_model, make_samples, autograd, error_of):
    from peft import LoraConfig

    model = make_model(dtype=torch.float64)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("other")
    model = model.double()
    found = GradientEngine(model).gradients(make_samples()).features
    assert found.shape[1] == 2 * 2 * (32 + 32)
    assert error_of(found, autograd(model, make_samples())) < 1e-12


def test_low_precision_models_accumulate_in_float32(make_model, make_samples, autograd):
    model = make_model(dtype=torch.bfloat16)
    found = GradientEngine(model).gradients(make_samples()).features
    expected = autograd(make_model(), make_samples())
    assert found.dtype == torch.float32
    cosines = torch.cosine_similarity(found, expected, dim=1)
    assert cosines.min() > 0.99, f"{cosines}: rounding alone leaves more than 0.99"


def test_batch_size_and_order_change_nothing_but_rounding(make_model, make_samples, error_of):
    engine, samples = GradientEngine(make_model(dtype=torch.float64)), make_samples()
    whole = engine.gradients(samples).features
    alone = torch.cat([engine.gradients([sample]).features for sample in samples])
    turned = engine.gradients(samples[::-1]).features.flip(0)
    assert error_of(alone, whole) < 1e-12
    assert error_of(turned, whole) < 1e-12


def test_flags_hooks_modes_and_gradients_are_left_as_they_were(make_model, make_samples):
    model = make_model()
    model.get_base_model().model.layers[0].eval()
    before = [(m.training, len(m._forward_hooks)) for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        GradientEngine(model).gradients(make_samples())
    assert [(m.training, len(m._forward_hooks)) for m in model.modules()] == before
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


def test_flags_are_restored_after_an_error(make_model, make_samples, monkeypatch):
    model = make_model()
    engine = GradientEngine(model)
    head = model.get_base_model().lm_head
    monkeypatch.setattr(head, "forward", lambda _: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        engine.gradients(make_samples())
    assert model.training
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_label_at_position_zero_and_masked_labels_give_no_loss(make_model):
    model = make_model(dtype=torch.float64)
    ids = np.arange(8)
    bare = np.array([-100, -100, 2, -100, 4, -100, -100, -100])
    first = np.array([0, -100, 2, -100, 4, -100, -100, -100])
    engine = GradientEngine(model)
    a, b = (engine.gradients([TokenizedSample("x", ids, labels)]) for labels in (bare, first))
    torch.testing.assert_close(a.features, b.features, rtol=0, atol=0)
    logits = model.eval()(input_ids=torch.as_tensor(ids)[None]).logits[0].log_softmax(-1)
    assert a.losses.item() == pytest.approx(-(logits[1, 2] + logits[3, 4]).item() / 2, rel=1e-12)
