from types import SimpleNamespace

import pytest

from clusterucb_core.lm import token_budget
from clusterucb_core.lm.settings import ModelSettings
from clusterucb_core.lm.token_budget import activation_bytes_per_token, batch_tokens

GIB = 2**30
# the shapes of Llama 3.2 1B and of Llama 2 7B
ONE_B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256}
SEVEN_B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}


@pytest.fixture
def on_gpu(monkeypatch):
    """Return the budget of a model on a GPU of some memory, without either."""

    def budget(shape, n_parameters, memory, device="cuda"):
        import torch
        from transformers import LlamaConfig

        monkeypatch.setattr(token_budget, "load_config", lambda _settings: LlamaConfig(**shape))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=memory)
        )
        settings = ModelSettings(base="here", dtype="bfloat16")
        return batch_tokens("auto", settings, n_parameters=n_parameters, device=device)

    return budget


@pytest.mark.parametrize(("wanted", "tokens"), [(512, 512), ("auto", 2048)])
def test_a_processor_takes_2048_tokens_unless_told_otherwise(wanted, tokens):
    settings = ModelSettings(base="nowhere")
    assert batch_tokens(wanted, settings, n_parameters=1, device="cpu") == tokens


def test_a_gpu_is_not_asked_where_the_number_is_given():
    assert batch_tokens(512, ModelSettings(base="nowhere"), n_parameters=1, device="cuda:3") == 512


def test_bytes_of_a_token_by_hand():
    from transformers import LlamaConfig

    # 16 layers x (16 x 2048 + 4 x 8192) x 2 bytes + 12 x 128256
    assert activation_bytes_per_token(LlamaConfig(**ONE_B), 2) == 2_097_152 + 1_539_072


@pytest.mark.parametrize(
    ("shape", "n_parameters", "memory", "tokens"),
    [
        # (80 - 2.3) / 2 GiB over 3.47 MiB a token: 11,470
        (ONE_B, 1_235_814_400, 80 * GIB, 8192),
        (SEVEN_B, 6_738_415_616, 80 * GIB, 4096),
        (SEVEN_B, 6_738_415_616, 16 * GIB, 1024),
        (SEVEN_B, 6_738_415_616, 8 * GIB, 1024),
        (ONE_B | {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}, 10**6, 80 * GIB, 65536),
    ],
)
def test_a_gpu_takes_what_its_memory_leaves_as_a_power_of_two(on_gpu, shape, n_parameters, memory, tokens):
    assert on_gpu(shape, n_parameters, memory) == tokens
    assert on_gpu(shape, n_parameters, memory, device="cuda:1") == tokens
