import numpy as np
import pytest
import torch
from torch.nn import functional

from clusterucb_core.features.last_layer import LastLayer


def parts_of(model, samples, width=2048):
    return LastLayer(model, width=width, seed=0).parts(samples)


def direct(model, sample):
    """Compute states, errors (by autograd through the model's own forward) and the loss of one sample."""
    model.eval()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen = []
    handle = base.get_output_embeddings().register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    logits = model(input_ids=torch.as_tensor(sample.input_ids)[None], use_cache=False).logits[0, :-1]
    handle.remove()
    targets = torch.as_tensor(sample.labels)[1:]
    use = targets != -100
    loss = functional.cross_entropy(logits[use], targets[use])
    (gradient,) = torch.autograd.grad(loss, seen[0])
    states, errors = seen[0][0].detach(), gradient[0, :-1][use] * int(use.sum())
    return states[:-1][use], errors, loss.detach()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "phi"])
def test_the_parts_of_a_batch_are_those_of_each_sample_by_autograd(make_model, make_samples, kind):
    model, samples = make_model(kind, dtype=torch.float64), make_samples()
    found = parts_of(model, samples)
    for row, sample in enumerate(samples):
        states, errors, loss = direct(model, sample)
        torch.testing.assert_close(found.state[row], states.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.error[row], errors.mean(0), rtol=1e-5, atol=1e-6)
        outer = (states.T @ errors / len(states)).flatten()
        torch.testing.assert_close(found.outer[row, : 32 * 32], outer, rtol=1e-5, atol=1e-6)
        assert not found.outer[row, 32 * 32 :].any()
        torch.testing.assert_close(found.losses[row], loss.double(), rtol=1e-5, atol=1e-6)


def test_an_error_is_the_heads_transpose_of_the_missed_probability(make_model, make_samples):
    model, (sample,) = make_model(dtype=torch.float64).eval(), make_samples((6,))
    base = model.get_base_model()
    with torch.no_grad():
        states = base.model(input_ids=torch.as_tensor(sample.input_ids)[None]).last_hidden_state[0]
        missed = torch.softmax(base.lm_head(states), dim=1)
        targets = torch.as_tensor(sample.labels)
        use = [t for t in range(5) if targets[t + 1] != -100]
        errors = [(missed[t] - torch.eye(61)[targets[t + 1]].double()) @ base.lm_head.weight for t in use]
    torch.testing.assert_close(parts_of(model, [sample]).error[0], torch.stack(errors).mean(0))


def test_no_neighbour_changes_a_sample(make_model, make_samples):
    model, samples = make_model(dtype=torch.float64), make_samples()
    together = parts_of(model, samples)
    for row, sample in enumerate(samples):
        alone = parts_of(model, [sample])
        for name in ("state", "error", "outer", "losses"):
            torch.testing.assert_close(getattr(together, name)[row], getattr(alone, name)[0])


def test_small_blocks_of_the_head_and_of_outer_products_change_nothing(make_model, make_samples, monkeypatch):
    model, samples = make_model(dtype=torch.float64), make_samples()
    whole = parts_of(model, samples)
    for name, value in {"HEAD_POSITIONS": 4, "OUTER_ENTRIES": 1024, "HELD_ENTRIES": 2048}.items():
        monkeypatch.setattr(f"clusterucb_core.features.last_layer.{name}", value)
    cut = parts_of(model, samples)
    torch.testing.assert_close(cut.error, whole.error)
    torch.testing.assert_close(cut.outer, whole.outer)


def test_a_sketch_of_outer_products_keeps_their_inner_products(make_model, make_samples, monkeypatch):
    monkeypatch.setattr("clusterucb_core.features.last_layer.OUTER_ENTRIES", 100)
    model, samples = make_model(dtype=torch.float64), make_samples()
    whole = functional.normalize(parts_of(model, samples, width=1024).outer)
    sketches = [
        functional.normalize(LastLayer(model, width=128, seed=seed).parts(samples).outer)
        for seed in range(40)
    ]
    mean = torch.stack([sketch @ sketch.T for sketch in sketches]).mean(0)
    assert (mean - whole @ whole.T).abs().max() < 5 * (2 / 128 / 40) ** 0.5


def test_what_is_not_supervised_counts_in_no_mean(make_model, make_samples):
    model, (sample,) = make_model(dtype=torch.float64), make_samples((9,))
    fewer = type(sample)(sample.sample_id, sample.input_ids, np.where(np.arange(9) < 7, -100, sample.labels))
    one, other = parts_of(model, [sample]), parts_of(model, [fewer])
    assert not torch.allclose(one.state, other.state)
    assert not torch.allclose(one.error, other.error)


def test_the_graph_of_a_model_without_a_head_apart_is_not_left_switched_on(make_model, make_samples):
    model = make_model("phi")
    parts_of(model, make_samples())
    assert torch.is_grad_enabled()
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
