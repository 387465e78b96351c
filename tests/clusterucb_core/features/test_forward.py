import numpy as np
import pytest
import torch

from clusterucb_core.errors import InvalidModel
from clusterucb_core.features.batches import plan_batches
from clusterucb_core.features.forward import PARTS, forward_parts, head_features, part_of, state_features
from clusterucb_core.features.gradients import UnusableSamples, iter_gradient_features
from clusterucb_core.records import TokenizedSample


@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_parts_come_in_the_order_of_the_samples_whatever_the_batches(make_model, make_samples, tokens):
    model, samples = make_model(), make_samples()
    found = forward_parts(model, samples, max_batch_tokens=tokens)
    for row, sample in enumerate(samples):
        alone = forward_parts(model, [sample])
        for name, values in found.items():
            assert values.dtype == np.float32
            np.testing.assert_allclose(values[row], alone[name][0], rtol=1e-4, atol=1e-6)


def test_samples_without_a_label_or_too_long_are_reported_together(make_model, make_samples):
    samples = make_samples((5, 9, 200))
    samples[0] = TokenizedSample("masked", samples[0].input_ids, np.full(5, -100))
    with pytest.raises(UnusableSamples) as caught:
        forward_parts(make_model(), samples)
    assert caught.value.indices == (0, 2)
    assert caught.value.reasons == ("no_supervised_token", "too_long")


def test_a_model_needs_no_adapter(make_model, make_samples):
    model = make_model().unload()
    found = forward_parts(model, make_samples())
    assert all(np.isfinite(values).all() for values in found.values())


def test_a_model_without_an_output_head_is_refused(make_samples):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    torch.manual_seed(0)
    with pytest.raises(InvalidModel, match="no output head"):
        forward_parts(LlamaModel(config), make_samples())


def features_of(features, samples, tokens=4096):
    lengths = np.array([len(sample.input_ids) for sample in samples])
    return list(features.iterate(samples, plan_batches(lengths, max_batch_tokens=tokens)))


@pytest.mark.parametrize("tokens", [1, 40, 4096])
@pytest.mark.parametrize(("kind", "entries"), [("forward", 1024 + 32), ("states", 32)])
def test_a_feature_is_a_unit_row_of_the_scaled_parts(make_model, make_samples, tokens, kind, entries):
    model, samples = make_model(), make_samples()
    features = state_features(model) if kind == "states" else head_features(model, width=1024)
    parts = forward_parts(model, samples, width=1024)
    for batch in features_of(features, samples, tokens):
        assert batch.features.shape[1] == features.width == entries
        np.testing.assert_allclose(np.linalg.norm(batch.features, axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(batch.states, parts["state"][batch.indices], rtol=1e-4, atol=1e-6)
        for name in PARTS[kind]:
            expected = parts[name][batch.indices]
            expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
            np.testing.assert_allclose(part_of(batch.features, name, width=1024), expected, atol=1e-5)


@pytest.mark.parametrize("make_features", [head_features, state_features])
def test_bad_samples_are_set_apart_and_the_others_kept(make_model, make_samples, make_features):
    model, samples = make_model(), make_samples()
    base = model.get_base_model()
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    samples[2] = TokenizedSample("masked", samples[2].input_ids, np.full_like(samples[2].labels, -100))
    broken = {i for i, sample in enumerate(samples) if 7 in sample.input_ids}
    (batch,) = features_of(make_features(model), samples)
    assert {(index, reason) for index, reason, _ in batch.excluded} == {(2, "no_supervised_token")} | {
        (index, "non_finite_loss") for index in broken - {2}
    }
    assert sorted(batch.indices) == sorted(set(range(7)) - broken - {2})


def test_a_sample_without_any_error_is_set_apart(make_model, make_samples):
    model = make_model().get_base_model()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    (batch,) = features_of(head_features(model), make_samples((9, 5)))
    assert [reason for _, reason, _ in batch.excluded] == ["zero_gradient"] * 2


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_the_pass_of_a_gradient_gives_the_states_of_a_forward_pass(make_model, make_samples, kind):
    model, samples = make_model(kind), make_samples()
    lengths = np.array([len(sample.input_ids) for sample in samples])
    batches = plan_batches(lengths, max_batch_tokens=40)
    alone = forward_parts(model, samples)["state"]
    for batch in iter_gradient_features(model, samples, batches):
        np.testing.assert_allclose(batch.states, alone[batch.indices], rtol=1e-4, atol=1e-6)
