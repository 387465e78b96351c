import logging

import numpy as np
import pytest
import torch

from clusterucb_core.errors import InvalidModel
from clusterucb_core.features.batches import plan_batches
from clusterucb_core.features.engine import BatchGradients
from clusterucb_core.features.gradients import (
    AdamMoments,
    UnusableSamples,
    check_engine,
    gradient_features,
    iter_gradient_features,
)
from clusterucb_core.features.projections import CountSketch, Rademacher, RollSketch
from clusterucb_core.records import TokenizedSample


def masked(sample):
    return TokenizedSample(sample.sample_id, sample.input_ids, np.full_like(sample.labels, -100))


def in_batches(samples, tokens):
    return plan_batches(np.array([len(sample.input_ids) for sample in samples]), max_batch_tokens=tokens)


@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_features_come_in_the_order_of_the_samples(make_model, make_samples, autograd, error_of, tokens):
    model, samples = make_model(), make_samples()
    found = gradient_features(model, samples, max_batch_tokens=tokens)
    assert found.dtype == np.float32
    assert error_of(found, autograd(model, samples)) < 1e-5


def test_adam_features_equal_the_formula_on_autograd_gradients(make_model, make_samples, autograd, error_of):
    model, samples = make_model(dtype=torch.float64), make_samples()
    gradients = autograd(model, samples).numpy()
    rng = np.random.default_rng(0)
    m, v = rng.normal(size=gradients.shape[1]) * 1e-3, rng.random(gradients.shape[1]) * 1e-6
    expected = (0.9 * m + 0.1 * gradients) / np.sqrt(0.999 * v + 0.001 * gradients**2 + 1e-8)
    found = gradient_features(model, samples, AdamMoments(m, v))
    assert error_of(found, expected) < 1e-6


@pytest.mark.parametrize("kind", [RollSketch, CountSketch, Rademacher])
def test_projected_features_are_unit_rows_with_the_cosines_of_the_gradients(make_model, make_samples, kind):
    model, samples = make_model(), make_samples()
    whole = gradient_features(model, samples)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    found = gradient_features(model, samples, projection=kind(dim=4096, seed=0))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found @ found.T - whole @ whole.T).max() < 6 * (2 / 4096) ** 0.5


def test_a_projection_never_holds_all_gradients_at_once(make_model, make_samples, monkeypatch):
    widths = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **kw: widths.append(shape) or zeros(*shape, **kw))
    gradient_features(make_model(), make_samples(), projection=RollSketch(dim=16, seed=0))
    assert {shape[-1] for shape in widths} == {16}


def test_unusable_samples_are_reported_together(make_model, make_samples):
    samples = make_samples()
    samples[2], samples[5] = masked(samples[2]), make_samples((200,))[0]
    with pytest.raises(UnusableSamples, match="2 samples have no usable gradient") as caught:
        gradient_features(make_model(), samples)
    assert caught.value.indices == (2, 5)
    assert caught.value.reasons == ("no_supervised_token", "too_long")


def test_bad_samples_are_set_apart_and_the_others_kept(make_model, make_samples, error_of):
    model, samples = make_model(), make_samples()
    expected = gradient_features(model, samples)
    samples[1] = masked(samples[1])
    batches = list(iter_gradient_features(model, samples, in_batches(samples, 4096)))
    assert [row[:2] for row in batches[0].excluded] == [(1, "no_supervised_token")]
    assert sorted(batches[0].indices) == [0, 2, 3, 4, 5, 6]
    assert error_of(batches[0].features, expected[batches[0].indices]) < 1e-5


def test_a_batch_of_bad_samples_alone_has_no_rows(make_model, make_samples):
    samples = [masked(sample) for sample in make_samples()]
    batch = next(iter_gradient_features(make_model(), samples, in_batches(samples, 4096)))
    assert batch.features.shape == (0, 2 * 4 * 2 * (32 + 32 + 32 + 32) - 2 * 2 * 4 * 16)
    assert len(batch.excluded) == len(samples)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_a_token_with_a_broken_embedding_spoils_its_own_sample_only(
    make_model, make_samples, autograd, error_of, kind
):
    model, samples = make_model(kind), make_samples()
    _untie_head(model)
    clean = [i for i, sample in enumerate(samples) if 7 not in sample.input_ids]
    expected = autograd(model, [samples[i] for i in clean])
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[7] = float("nan")
    batch = next(iter_gradient_features(model, samples, in_batches(samples, 4096)))
    assert sorted(batch.indices) == clean
    assert {reason for _, reason, _ in batch.excluded} == {"non_finite_loss"}
    assert error_of(batch.features[np.argsort(batch.indices)], expected) < 1e-5


def _untie_head(model):
    """Give a tied head a matrix of its own: NaN in the head would spoil every sample."""
    head = model.get_base_model().lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


class InfectiousEngine:
    """Returns NaN for every row of a batch that holds the sick sample, as a mixing layer would."""

    def __init__(self, sick):
        from clusterucb_core.features.token_rows import TokenLimits

        self.sick = sick
        self.limits = TokenLimits(100, None)

    def gradients(self, samples):
        value = float("nan") if self.sick in [sample.sample_id for sample in samples] else 1.0
        losses = torch.full((len(samples),), value)
        rows = losses[:, None].expand(-1, 2)
        return BatchGradients(rows, losses, losses, rows)


def test_neighbours_infected_by_a_bad_sample_are_computed_again_alone(make_samples):
    from clusterucb_core.features.outcomes import batch_outcomes

    samples = make_samples()
    engine = InfectiousEngine(samples[3].sample_id)
    outcomes = batch_outcomes(engine.gradients, samples, limits=engine.limits, unit_rows=False)
    assert [outcome.reason for outcome in outcomes] == [None] * 3 + ["non_finite_loss"] + [None] * 3


def test_infinite_gradients_and_zero_gradients_have_reasons_of_their_own(make_model, make_samples):
    samples = make_samples((9, 9))
    model = make_model()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.zeros_(parameter)
    batch = next(iter_gradient_features(model, samples, [np.arange(2)]))
    assert [reason for _, reason, _ in batch.excluded] == ["zero_gradient"] * 2
    head = model.get_base_model().lm_head
    head.register_forward_hook(lambda _m, _i, out: out.register_hook(lambda g: g * float("inf")) and None)
    batch = next(iter_gradient_features(model, samples, [np.arange(2)]))
    assert [reason for _, reason, _ in batch.excluded] == ["non_finite_gradient"] * 2


def test_a_zero_gradient_is_not_hidden_by_adam(make_model, make_samples):
    model = make_model()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.zeros_(parameter)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with pytest.raises(UnusableSamples, match="zero_gradient"):
        gradient_features(model, make_samples(), AdamMoments(np.ones(size), np.ones(size)))


def limit_memory(monkeypatch, model, tokens):
    body = model.get_base_model().model
    forward = body.forward

    def limited(input_ids, **kwargs):
        if input_ids.numel() > tokens:
            raise torch.OutOfMemoryError(f"{input_ids.numel()} tokens")
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(body, "forward", limited)


def test_a_batch_that_does_not_fit_is_halved(make_model, make_samples, monkeypatch, error_of, caplog):
    model, samples = make_model(), make_samples()
    expected = gradient_features(model, samples)
    limit_memory(monkeypatch, model, 50)
    with caplog.at_level(logging.WARNING):
        assert error_of(gradient_features(model, samples), expected) < 1e-5
    assert "halving the batch" in caplog.text


def test_a_sample_that_does_not_fit_alone_is_excluded(make_model, make_samples, monkeypatch):
    model = make_model()
    limit_memory(monkeypatch, model, 20)
    with pytest.raises(UnusableSamples) as caught:
        gradient_features(model, make_samples())
    assert (caught.value.indices, caught.value.reasons) == ((1,), ("out_of_memory",))


def test_a_model_without_an_adapter_is_refused(make_model, make_samples):
    model = make_model()
    model.requires_grad_(False)
    with pytest.raises(InvalidModel, match="no trainable parameter"):
        gradient_features(model, make_samples())


def test_a_merged_adapter_is_refused(make_model, make_samples):
    model = make_model()
    model.merge_adapter()
    with pytest.raises(InvalidModel, match="merged or disabled"):
        gradient_features(model, make_samples())


def test_the_self_check_passes_on_a_sound_model(make_model, make_samples, caplog):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        check_engine(make_model(dtype=dtype), make_samples())
    check_engine(make_model(), [])
    assert "no usable sample among 0" in caplog.text


def test_the_self_check_finds_a_layer_whose_gradient_is_changed(make_model, make_samples, monkeypatch):
    import torch.nn.functional as functional

    model = make_model()
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"]
    monkeypatch.setattr(layer, "forward", lambda x: functional.linear(2 * x, layer.weight))
    with pytest.raises(InvalidModel, match="differ from autograd"):
        check_engine(model, make_samples())
