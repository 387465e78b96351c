"""A tiny tokenizer and a tiny random Llama, built once a session."""

import pytest

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>"]
TEXT = [
    "What is two plus two? The answer is four. You are a helpful assistant.",
    "user assistant system Hello there, how are you today? I am fine.",
    "<|user|>\n<|assistant|>\n<|system|>\n",
] * 4


@pytest.fixture(scope="session")
def backend():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@pytest.fixture
def make_tokenizer(backend):
    """Build a tokenizer from the trained one; `adds_bos` as Llama's does."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    def make(*, adds_bos: bool = False, template: str | None = None):
        copy = Tokenizer.from_str(backend.to_str())
        if adds_bos:
            copy.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", copy.token_to_id("<s>"))]
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=copy, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
        if template is not None:
            tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, backend):
    """A Llama of hidden size 32 with random weights and 64 positions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder
