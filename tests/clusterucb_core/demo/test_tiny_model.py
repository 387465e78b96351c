"""The tiny model: the same weights for a seed, torch left as it was, a folder that transformers loads."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clusterucb_core.demo.tiny_model import CONTEXT_TOKENS, TinyModelRecipe, write_tiny_model

SMALL = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=3, batch_samples=4)
MODEL_FILES = ("model.safetensors", "tokenizer.json", "config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path, seed=0, recipe=SMALL)
    return path


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    torch.rand(7)  # the state that torch happens to be in must not matter
    write_tiny_model(tmp_path, seed=0, recipe=SMALL)
    assert [(tmp_path / name).read_bytes() for name in MODEL_FILES] == [
        (folder / name).read_bytes() for name in MODEL_FILES
    ]


def test_another_seed_gives_other_weights(folder, tmp_path):
    write_tiny_model(tmp_path, seed=1, recipe=SMALL)
    assert (tmp_path / MODEL_FILES[0]).read_bytes() != (folder / MODEL_FILES[0]).read_bytes()


def test_threads_and_random_state_are_left_as_they_were(tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    write_tiny_model(tmp_path, seed=2, recipe=SMALL)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_the_saved_tokenizer_round_trips_and_gives_each_digit_a_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = 'Convert 4050 metres to km: 4.05\n\n{"a": 1} é'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert [piece for piece in tokenizer.tokenize("4050") if piece.isdigit()] == ["4", "0", "5", "0"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert tokenizer.chat_template is None


def test_the_saved_model_predicts_over_its_vocabulary(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = model(torch.tensor([tokenizer("Hello")["input_ids"]])).logits
    assert logits.shape[-1] == len(tokenizer) == model.config.vocab_size
    assert torch.isfinite(logits).all()
    assert model.config.max_position_embeddings == CONTEXT_TOKENS
    assert (model.config.eos_token_id, model.config.pad_token_id) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )


def test_more_steps_lower_the_loss_on_generated_text(folder, tmp_path):
    longer = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=60, batch_samples=4)
    write_tiny_model(tmp_path, seed=0, recipe=longer)
    losses: list[float] = []
    for path in (folder, tmp_path):
        model = AutoModelForCausalLM.from_pretrained(path)
        text = "<|user|>\nWhat is the capital of Peru?\n<|assistant|>\nLima is the capital of Peru.</s>"
        ids = torch.tensor([AutoTokenizer.from_pretrained(path)(text)["input_ids"]])
        losses.append(model(ids, labels=ids).loss.item())
    assert losses[1] < losses[0] - 0.5, "the optimiser does not move, or the schedule is zero"
