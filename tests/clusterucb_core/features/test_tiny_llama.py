"""The engine on a trained model, found through CLUSTERUCB_MODELS."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from clusterucb_core.features.gradients import AdamMoments, check_engine, gradient_features
from clusterucb_core.features.projections import RollSketch

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny_llama():
    if "CLUSTERUCB_MODELS" not in os.environ:
        pytest.skip("CLUSTERUCB_MODELS is not set: no trained model to test with")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = Path(os.environ["CLUSTERUCB_MODELS"]) / "tiny-llama"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def test_sixteen_ragged_samples_agree_with_autograd(tiny_llama, make_samples, autograd, error_of):
    samples = make_samples(np.random.default_rng(0).integers(8, 400, 16))
    check_engine(tiny_llama, samples)
    expected = autograd(tiny_llama, samples)
    assert error_of(gradient_features(tiny_llama, samples, max_batch_tokens=1024), expected) < 1e-5


def test_a_sketch_of_8192_keeps_the_cosines_of_adam_features(tiny_llama, make_samples):
    samples = make_samples(np.random.default_rng(1).integers(8, 200, 16))
    size = sum(p.numel() for p in tiny_llama.parameters() if p.requires_grad)
    rng = np.random.default_rng(0)
    moments = AdamMoments(rng.normal(size=size) * 1e-4, rng.random(size) * 1e-7)
    whole = gradient_features(tiny_llama, samples, moments)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    found = gradient_features(tiny_llama, samples, moments, RollSketch(dim=8192, seed=0))
    assert np.abs(found @ found.T - whole @ whole.T).max() < 6 * (2 / 8192) ** 0.5
