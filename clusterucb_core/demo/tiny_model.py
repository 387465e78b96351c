"""A tiny Llama and its tokenizer, trained on generated text in seconds on one core.

The text holds every family, but the target's only now and then, so that fine-tuning has something to teach.
Writes a model folder as `save_pretrained` does (safetensors).
"""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clusterucb_core.demo.exchanges import Exchange
from clusterucb_core.demo.families import FAMILIES, TARGET_FAMILY, generator_of
from clusterucb_core.lm.templates import ChatFormat, chat_format, render
from clusterucb_core.records import IntArray, Message
from clusterucb_core.seeds import child_rng, child_seed

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SPECIAL_TOKENS = (PAD, BOS, EOS)  # in the order of their ids
CONTEXT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TinyModelRecipe:
    """Size of the tiny model and of its training."""

    vocabulary: int = 1024
    tokenizer_texts: int = 4000
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    steps: int = 400
    batch_samples: int = 32
    learning_rate: float = 4e-3
    target_share: float = 0.01


FULL_RECIPE = TinyModelRecipe()


def write_tiny_model(folder: Path, *, seed: int, recipe: TinyModelRecipe = FULL_RECIPE) -> None:
    """Train the tiny model and save it with its tokenizer.

    Threads and torch's random state are as before afterwards.

    Args:
        folder: the model folder; made where it is absent.
        seed: the demo's seed.
        recipe: sizes and steps.
    """
    rng = child_rng(seed, "demo-model")
    exchanges = _training_exchanges(recipe.steps * recipe.batch_samples, recipe.target_share, rng)
    tokenizer = _train_tokenizer(exchanges[: recipe.tokenizer_texts], recipe.vocabulary)
    rows = _token_rows(chat_format(tokenizer, None), exchanges)
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(child_seed(seed, "demo-weights"))
        model = LlamaForCausalLM(_model_config(recipe, tokenizer))
        _train(model, rows, recipe=recipe, rng=rng)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _training_exchanges(count: int, target_share: float, rng: np.random.Generator) -> list[Exchange]:
    others = (1 - target_share) / (len(FAMILIES) - 1)
    shares = [target_share if family == TARGET_FAMILY else others for family in FAMILIES]
    families = rng.choice(len(FAMILIES), size=count, p=shares)
    return [generator_of(FAMILIES[int(family)])(rng) for family in families]


def _train_tokenizer(exchanges: Sequence[Exchange], vocabulary: int) -> PreTrainedTokenizerFast:
    bare = Tokenizer(models.BPE())
    # One token a digit: the digits of a product cannot be learnt from arbitrary groups.
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    turns = [turn for exchange in exchanges for turn in _messages(exchange)]
    bare.train_from_iterator((f"<|{turn.role}|>\n{turn.content}\n" for turn in turns), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _messages(exchange: Exchange) -> list[Message]:
    messages = [Message("user", exchange.prompt), Message("assistant", exchange.completion)]
    if exchange.follow_up is not None:
        question, answer = exchange.follow_up
        messages += [Message("user", question), Message("assistant", answer)]
    return messages


def _token_rows(chat: ChatFormat, exchanges: Sequence[Exchange]) -> list[list[int]]:
    texts = [render(chat, _messages(exchange)).rstrip("\n") for exchange in exchanges]
    encoded: list[list[int]] = chat.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [ids[:CONTEXT_TOKENS] for ids in encoded]


def _model_config(recipe: TinyModelRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
    )


def _train(
    model: LlamaForCausalLM,
    rows: Sequence[Sequence[int]],
    *,
    recipe: TinyModelRecipe,
    rng: np.random.Generator,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, recipe.steps))
    model.train()
    for batch in _batches([len(row) for row in rows], recipe, rng):
        loss = _loss(model, [rows[int(position)] for position in batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _warm_cosine(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 20)
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(step, steps) / max(1, steps))))


def _batches(lengths: Sequence[int], recipe: TinyModelRecipe, rng: np.random.Generator) -> list[IntArray]:
    """Return batches of rows of like length, so that little is padding, in random order."""
    order = np.argsort(lengths, kind="stable")[: recipe.steps * recipe.batch_samples]
    batches = np.array_split(order, recipe.steps)
    return [batches[int(position)] for position in rng.permutation(len(batches))]


def _loss(model: LlamaForCausalLM, rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    logits = model(input_ids=ids[:, :-1]).logits
    wanted = ids[:, 1:].masked_fill(torch.arange(1, width) >= lengths[:, None], -100)
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)


@contextmanager
def _one_thread() -> Generator[None]:
    # Sums in another order give other weights: one thread makes the model the same on every machine's cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
