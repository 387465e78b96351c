import string

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clusterucb_core.evaluation import Rendering

CHARACTERS = string.digits + string.ascii_letters + " :=()?+.,#\n"


@pytest.fixture(scope="session")
def tokenizer():
    """One token a character."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *CHARACTERS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def model(tokenizer):
    """A random model whose answers depend on the prompt."""
    torch.manual_seed(3)
    return LlamaForCausalLM(llama_config(tokenizer, hidden_size=32, initializer_range=0.5))


@pytest.fixture(scope="session")
def chain_model(tokenizer):
    """A model that follows ":" by "=42" and the end, and "?" by "x" without an end."""
    size = len(tokenizer)
    model = LlamaForCausalLM(llama_config(tokenizer, hidden_size=size + size % 2))
    follows = {":": "=", "=": "4", "4": "2", "2": "</s>", "?": "x", "x": "x"}
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, model.config.hidden_size))
        model.lm_head.weight.zero_()
        for before, after in follows.items():
            first, second = tokenizer.convert_tokens_to_ids([before, after])
            model.lm_head.weight[second, first] = 1.0
    return model


def llama_config(tokenizer, *, hidden_size, **settings):
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=False,
        **settings,
    )


@pytest.fixture(scope="session")
def rendering(tokenizer):
    """Prompts and answers as they are, for a model that reads 64 tokens of one character each."""

    def prompt(messages):
        return "".join(message.content for message in messages)

    def exchange(messages):
        return prompt(messages[:-1]), f"{messages[-1].content}</s>"

    def encode(before, after):
        return tokenizer(before)["input_ids"], tokenizer(after)["input_ids"]

    return Rendering(prompt, exchange, encode, max_length=64)
