"""Models, samples and Adam moments that the feature benchmark runs on: random weights, real lengths.

Reads the pool of `CLUSTERUCB_DATA` and the tokenizer of `CLUSTERUCB_MODELS` for the lengths, where both are
set.
"""

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clusterucb_core.errors import ClusterUcbError
from clusterucb_core.features.batches import plan_batches
from clusterucb_core.features.gradients import AdamMoments
from clusterucb_core.features.token_rows import IGNORED
from clusterucb_core.lm.chat import Tokenized, chat_format, tokenize_batch
from clusterucb_core.lm.loading import BUILDING, load_tokenizer
from clusterucb_core.lm.lora import adapt
from clusterucb_core.lm.settings import LoraSettings, ModelSettings
from clusterucb_core.pool.formats import read_file
from clusterucb_core.records import IntArray, TokenizedSample
from clusterucb_core.seeds import child_rng, child_seed

# Llama configurations; `1b` has the shape of Llama 3.2 1B.
SIZES: dict[str, dict[str, Any]] = {
    "XS": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 128,
    },
    "S": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 4096,
    },
    "M": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": 8192,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}
_MOMENT_BATCHES = 8
_SHORTEST = 8


@dataclass(frozen=True)
class WorkloadSettings:
    """What to build: everything but the lengths follows from these and the seed."""

    size: str = "S"
    rank: int = 8
    samples: int = 128
    max_length: int = 512
    batch_tokens: int = 1024
    device: str = "cpu"
    dtype: str = "float32"
    adapter_dtype: str = "float32"
    seed: int = 0


@dataclass(frozen=True)
class Workload:
    """A LoRA model with non-zero matrices, samples, their batches, and the moments of a short Adam run."""

    settings: WorkloadSettings
    model: nn.Module
    samples: list[TokenizedSample]
    batches: list[IntArray]
    moments: AdamMoments

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.settings.device)

    def batched_samples(self) -> Iterator[list[TokenizedSample]]:
        """Yield the samples of each batch, short ones first."""
        for batch in self.batches:
            yield [self.samples[index] for index in batch]

    def spread_samples(self, count: int) -> list[TokenizedSample]:
        """Return `count` samples that stand for all: the middle one of each of as many length groups."""
        ordered = sorted(self.samples, key=lambda sample: len(sample.input_ids))
        if count >= len(ordered):
            return ordered
        return [ordered[int((place + 0.5) * len(ordered) / count)] for place in range(count)]


def sample_lengths(settings: WorkloadSettings) -> tuple[list[int], str]:
    """Return the token lengths of the samples, and where they come from.

    Real ones are those of pool rows drawn by the seed, cut at `max_length`; without a pool they are drawn
    from a lognormal distribution of about the same median and mean.
    """
    rng = child_rng(settings.seed, "lengths")
    if {"CLUSTERUCB_DATA", "CLUSTERUCB_MODELS"} <= os.environ.keys():
        pool = Path(os.environ["CLUSTERUCB_DATA"]) / "pool"
        tokenizer = Path(os.environ["CLUSTERUCB_MODELS"]) / "tiny-llama"
        lengths = _pool_lengths(pool, tokenizer, settings, rng)
        return lengths, "rows of the shared pool, tokenised for the tiny Llama"
    drawn = rng.lognormal(np.log(120), 0.7, settings.samples)
    return np.clip(drawn, _SHORTEST, settings.max_length).astype(
        int
    ).tolist(), "lognormal, median 120, sigma 0.7"


def _pool_lengths(
    pool: Path, tokenizer: Path, settings: WorkloadSettings, rng: np.random.Generator
) -> list[int]:
    samples = [
        sample
        for path in sorted(pool.iterdir())
        for row in read_file(path, source=path.name)
        for sample in row.samples
    ]
    # some more than wanted: a few rows have no answer left within the limit
    picked = rng.permutation(len(samples))[: 2 * settings.samples + 16]
    chat = chat_format(load_tokenizer(ModelSettings(base=str(tokenizer))), None)
    outcomes = tokenize_batch(
        chat,
        [(samples[index].sample_id, samples[index].messages) for index in picked],
        max_length=settings.max_length,
    )
    lengths = [len(outcome.sample.input_ids) for outcome in outcomes if isinstance(outcome, Tokenized)]
    if len(lengths) < settings.samples:
        raise ClusterUcbError(f"the pool gave {len(lengths)} of {settings.samples} samples; ask for fewer")
    return lengths[: settings.samples]


def build_workload(settings: WorkloadSettings, lengths: Sequence[int]) -> Workload:
    """Build model, samples and moments.

    Args:
        settings: what to build.
        lengths: tokens of each sample.

    Returns:
        The workload; the same for the same arguments.
    """
    model = _build_model(settings)
    samples = _build_samples(lengths, SIZES[settings.size]["vocab_size"], settings.seed)
    batches = plan_batches(np.array(lengths, dtype=np.int64), max_batch_tokens=settings.batch_tokens)
    return Workload(settings, model, samples, batches, _adam_moments(model, samples, batches))


def _build_model(settings: WorkloadSettings) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(max_position_embeddings=max(2048, settings.max_length), **SIZES[settings.size])
    lora = LoraSettings(r=settings.rank, alpha=4 * settings.rank, dropout=0.0)
    gpus = range(torch.cuda.device_count()) if settings.device == "cuda" else ()
    with BUILDING, torch.random.fork_rng(devices=gpus):
        torch.manual_seed(child_seed(settings.seed, "model"))
        with torch.device(settings.device):
            base = LlamaForCausalLM(config).to(getattr(torch, settings.dtype))
        model = adapt(base, lora)
        for parameter in model.parameters():
            if parameter.requires_grad:
                # a fresh adapter's B is zero, and with it every gradient of A
                nn.init.normal_(parameter, std=0.02)
                parameter.data = parameter.data.to(getattr(torch, settings.adapter_dtype))
    return model.to(settings.device).eval()


def _build_samples(lengths: Sequence[int], vocabulary: int, seed: int) -> list[TokenizedSample]:
    rng = child_rng(seed, "tokens")
    samples: list[TokenizedSample] = []
    for index, length in enumerate(lengths):
        ids = rng.integers(0, vocabulary, length)
        labels = ids.copy()
        labels[: length // 2] = IGNORED
        samples.append(TokenizedSample(f"sample-{index:06}", ids, labels))
    return samples


def _adam_moments(
    model: nn.Module, samples: Sequence[TokenizedSample], batches: Sequence[IntArray]
) -> AdamMoments:
    """Return the moments after some steps of Adam at a learning rate of 0: real in scale, cheap to have."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    second = [torch.zeros_like(moment) for moment in first]
    for batch in batches[:: max(1, len(batches) // _MOMENT_BATCHES)]:
        batch_loss(model, [samples[index] for index in batch]).backward()
        for parameter, m, v in zip(parameters, first, second, strict=True):
            gradient = parameter.grad.float()
            m.lerp_(gradient, 0.1)
            v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        model.zero_grad(set_to_none=True)
    flat = [torch.cat([m.flatten() for m in moments]).cpu().numpy() for moments in (first, second)]
    return AdamMoments(*flat)


def batch_loss(model: nn.Module, samples: Sequence[TokenizedSample]) -> torch.Tensor:
    """Return the loss of one batch by the model's own forward: padded on the right, over all tokens.

    There is no attention mask: a causal model needs none for padding on the right, and is faster without.
    """
    device = next(model.parameters()).device
    ids = _padded([sample.input_ids for sample in samples], 0)
    labels = _padded([sample.labels for sample in samples], IGNORED)
    return model(input_ids=ids.to(device), labels=labels.to(device), use_cache=False).loss


def _padded(rows: Sequence[IntArray], filler: int) -> torch.Tensor:
    tensors = [torch.from_numpy(row) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler)


def matrix_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the entries of the base's weight matrices (the output head's included) and of the adapter's."""
    lora = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    linear = {
        id(module.weight): module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear)
    }
    return sum(linear.values()) - lora, lora


def describe(workload: Workload, lengths_from: str) -> dict[str, Any]:
    """Return what a reader must know of the work."""
    lengths = [len(sample.input_ids) for sample in workload.samples]
    base, lora = matrix_parameters(workload.model)
    padded = sum(
        len(batch) * max(len(workload.samples[index].input_ids) for index in batch)
        for batch in workload.batches
    )
    return {
        "samples": len(lengths),
        "tokens": sum(lengths),
        "median_length": statistics.median(lengths),
        "longest": max(lengths),
        "lengths_from": lengths_from,
        "batches": len(workload.batches),
        "padding_share": round(1 - sum(lengths) / padded, 4),
        "base_matrix_parameters": base,
        "lora_parameters": lora,
    }
