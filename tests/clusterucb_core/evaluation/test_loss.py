import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from clusterucb_core.errors import InvalidTarget, TrainingDiverged
from clusterucb_core.evaluation import test_losses as losses_of
from clusterucb_core.records import TokenizedSample


@pytest.fixture(scope="module")
def samples(tokenizer):
    rng = np.random.default_rng(0)
    return [sample(rng, length, len(tokenizer)) for length in (5, 40, 2, 17, 17, 3, 29, 8)]


def sample(rng, length, vocabulary):
    input_ids = rng.integers(3, vocabulary, size=length)
    labels = np.where(rng.random(length) < 0.5, -100, input_ids)
    labels[-1] = input_ids[-1]
    return TokenizedSample(f"s{length}", input_ids, labels)


def one_by_one(model, sample):
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(sample.input_ids)[None]).logits[0]
    log_p = torch.log_softmax(logits.double(), dim=-1)
    places = [t for t in range(1, len(sample.labels)) if sample.labels[t] != -100]
    return -float(np.mean([log_p[t - 1, sample.labels[t]].item() for t in places]))


def test_losses_agree_with_one_sample_at_a_time(model, samples):
    direct = [one_by_one(model, sample) for sample in samples]
    np.testing.assert_allclose(
        losses_of(model, samples, max_batch_tokens=64),
        direct,
        rtol=1e-5,
        err_msg="an offset by one place, or padding that is attended to, gives other losses",
    )


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 97, 10_000])
def test_batches_and_order_change_nothing(model, samples, max_batch_tokens):
    expected = losses_of(model, samples, max_batch_tokens=64)
    turned = losses_of(model, samples[::-1], max_batch_tokens=max_batch_tokens)
    np.testing.assert_allclose(turned[::-1], expected, rtol=1e-5)


def test_batches_stay_within_the_padded_tokens(model, samples):
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda *args: shapes.append(args[2]["input_ids"].shape), with_kwargs=True
    )
    losses_of(model, samples, max_batch_tokens=40)
    hook.remove()
    assert all(rows == 1 or rows * width <= 40 for rows, width in shapes)
    assert len(shapes) < len(samples)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_model_with_adapters_is_evaluated_without_their_dropout(model, samples):
    config = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.9, init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(model), config)
    first = losses_of(adapted, samples, max_batch_tokens=64)
    np.testing.assert_array_equal(losses_of(adapted, samples, max_batch_tokens=64), first)
    assert not np.allclose(first, losses_of(model, samples, max_batch_tokens=64))


def test_each_module_keeps_its_own_mode(model, samples):
    model.train()
    model.lm_head.eval()
    losses_of(model, samples, max_batch_tokens=64)
    assert model.training
    assert not model.lm_head.training
    model.eval()


def test_no_sample_gives_no_loss(model):
    assert losses_of(model, [], max_batch_tokens=64).shape == (0,)


def test_a_sample_without_a_supervised_token_is_named(model):
    ids = np.array([4, 5, 6])
    labels = np.array([4, -100, -100])
    with pytest.raises(InvalidTarget, match="test sample lost has no supervised token"):
        losses_of(model, [TokenizedSample("lost", ids, labels)], max_batch_tokens=64)


def test_a_model_that_diverged_is_an_error_and_not_a_number(model, samples):
    weight = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="test sample s5 is nan; the model has diverged"):
        losses_of(model, samples, max_batch_tokens=64)
    with torch.no_grad():
        model.lm_head.weight.copy_(weight)
