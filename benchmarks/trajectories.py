"""Trajectories of dynamic selection under the oracle, whose rewards benchmarks replay.

The protocol is that of the project's method notes: a pool of 6,000 real samples and the tiny Llama; 20 warmup
steps; then, before each further period, the influence of every sample, and an epoch on the true top 5 %.
Sequences of at most 160 tokens, prompts cut from the left to 120; LoRA r 4, alpha 16, no dropout, on q, k, v,
o; AdamW at a constant learning rate of 1e-3, batch 16; unprojected Adam features; 30 validation samples of
GSM8K, 27 x 3 of BBH.

Files written: two `.npz` a target and seed in the folder given, found again by a later call: the trajectory,
and the hidden states of pool and target at the warmup checkpoint.
"""

import argparse
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb_core.features.batches import plan_batches
from clusterucb_core.features.gradients import AdamMoments, gradient_features, iter_gradient_features
from clusterucb_core.influence import aggregate_scores, subtask_scores, top_k
from clusterucb_core.lm.chat import Tokenized, chat_format, tokenize_batch
from clusterucb_core.lm.loading import load_tokenizer
from clusterucb_core.lm.lora import new_adapter
from clusterucb_core.lm.settings import LoraSettings, ModelSettings
from clusterucb_core.pool.ingest import PoolSettings, ingest, limit_samples, read_sample_ids, read_samples
from clusterucb_core.records import Sample, TokenizedSample
from clusterucb_core.seeds import child_rng
from clusterucb_core.targets.catalog import TargetSettings, load_target, subtask_index, validation_samples

logger = logging.getLogger(__name__)

MAX_TOKENS, MAX_PROMPT_TOKENS = 160, 120
WARMUP_STEPS, BATCH, LEARNING_RATE = 20, 16, 1e-3
VALIDATION_ROWS = {"gsm8k": 30, "bbh": 81}
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Trajectory:
    """What one trajectory left: all that a selection policy could see, and the truth.

    `scores[t]` [n, s] are the subtask scores of every sample at period t, 0 being the warmup checkpoint;
    `features` float16 [n, p] the unit Adam features there; `target[t]` [s, p] the subtask means of the
    validation gradients at period t; `tokens` [n].
    """

    scores: list[NDArray[np.float64]]
    features: NDArray[np.float16]
    target: list[NDArray[np.float32]]
    tokens: NDArray[np.int64]

    def prior(self, period: int) -> NDArray[np.float64]:
        """Return `< phi_0, gamma_t >` [n, s]: old sample features against the current target gradients."""
        blocks = np.array_split(np.arange(len(self.features)), max(1, len(self.features) // 1024))
        means = self.target[period].T
        return np.concatenate([self.features[rows].astype(np.float32) @ means for rows in blocks]).astype(
            np.float64
        )


@dataclass(frozen=True)
class States:
    """Mean hidden states over supervised positions at the warmup checkpoint, after every layer.

    `pool` float16 [n, layers + 1, h] and `target` [v, layers + 1, h] begin with the token embeddings;
    `subtask` [v]; `block_share` is one layer's share of all parameters.
    """

    pool: NDArray[np.float16]
    target: NDArray[np.float16]
    subtask: NDArray[np.int64]
    block_share: float


def open_trajectory(target: str, *, seed: int, samples: int, periods: int, folder: Path) -> Trajectory:
    """Return a trajectory, computed now unless the folder holds it."""
    path = folder / f"{target}-{seed}-{samples}-{periods}.npz"
    if not path.is_file():
        _save(path, _computed(target, seed=seed, samples=samples, periods=periods, folder=folder))
    with np.load(path, allow_pickle=False) as content:
        return Trajectory(
            scores=[content[f"scores_{period}"] for period in range(periods)],
            features=content["features"],
            target=[content[f"target_{period}"] for period in range(periods)],
            tokens=content["tokens"],
        )


def open_states(target: str, *, seed: int, samples: int, folder: Path) -> States:
    """Return the hidden states at a warmup checkpoint, computed now unless the folder has them."""
    path = folder / f"{target}-{seed}-{samples}-states.npz"
    if not path.is_file():
        start = _warmed_up(target, seed=seed, samples=samples, folder=folder)
        blocks = start.model.get_base_model().model.layers
        inside = sum(parameter.numel() for parameter in blocks.parameters())
        total = sum(parameter.numel() for parameter in start.model.parameters())
        _save(
            path,
            {
                "pool": _mean_states(start.model, start.pool),
                "target": _mean_states(start.model, start.validation),
                "subtask": start.subtask,
                "block_share": np.array(inside / len(blocks) / total),
            },
        )
    with np.load(path, allow_pickle=False) as content:
        return States(content["pool"], content["target"], content["subtask"], float(content["block_share"]))


def _save(path: Path, content: dict[str, NDArray[np.generic]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp.npz")
    np.savez(draft, **content)
    draft.replace(path)


@dataclass(frozen=True)
class _Start:
    """A trajectory at the end of its warmup; `subtask` [v] of the validation rows."""

    model: PeftModel
    optimizer: torch.optim.Optimizer
    rng: np.random.Generator
    pool: list[TokenizedSample]
    validation: list[TokenizedSample]
    subtask: NDArray[np.int64]


def _warmed_up(target: str, *, seed: int, samples: int, folder: Path) -> _Start:
    settings = tiny_llama_settings(rank=4)
    pool = _tokens(settings, pool_samples(samples, folder))
    goal = load_target(target_settings(target), Path())
    _, subtask = subtask_index(goal)
    rows = np.arange(len(subtask))[: VALIDATION_ROWS[target]]
    validation = _tokens(settings, [validation_samples(goal)[row] for row in rows])
    model = new_adapter(settings, "cpu", seed)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.0
    )
    rng = child_rng(seed, "trajectory", target)
    first = rng.permutation(len(pool))[: WARMUP_STEPS * BATCH]
    train_epoch(model, optimizer, [pool[row] for row in first])
    return _Start(model, optimizer, rng, pool, validation, np.asarray(subtask)[rows])


def _computed(
    target: str, *, seed: int, samples: int, periods: int, folder: Path
) -> dict[str, NDArray[np.generic]]:
    start = _warmed_up(target, seed=seed, samples=samples, folder=folder)
    model, optimizer, rng, pool = start.model, start.optimizer, start.rng, start.pool
    subtask, n_subtasks = start.subtask, int(start.subtask.max()) + 1
    result: dict[str, NDArray[np.generic]] = {"tokens": np.array([sample.input_ids.size for sample in pool])}
    for period in range(periods):
        began = time.monotonic()
        gradients = gradient_features(model, start.validation, max_batch_tokens=BATCH_TOKENS)
        gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
        scores, features = _scores(model, pool, adam_moments(model, optimizer), (gradients, subtask))
        result[f"scores_{period}"] = scores
        means = np.zeros((n_subtasks, gradients.shape[1]), dtype=np.float32)
        np.add.at(means, subtask, gradients)
        result[f"target_{period}"] = means / np.bincount(subtask)[:, None]
        if period == 0:
            result["features"] = features
        best = top_k(aggregate_scores(scores, "max"), len(pool) // 20)
        train_epoch(model, optimizer, [pool[row] for row in rng.permutation(best)])
        logger.warning("%s, seed %d, period %d: %.0f s", target, seed, period, time.monotonic() - began)
    return result


def tiny_llama_settings(*, rank: int) -> ModelSettings:
    """Return the settings of the tiny Llama with a LoRA adapter of some rank."""
    return ModelSettings(
        base=str(Path(os.environ["CLUSTERUCB_MODELS"]) / "tiny-llama"),
        dtype="float32",
        max_length=512,
        lora=LoraSettings(r=rank, alpha=4 * rank, dropout=0.0),
    )


def pool_samples(samples: int, folder: Path) -> list[Sample]:
    """Return so many samples of the shared pool, ingested below a folder."""
    sources = [{"path": "gsm8k_train.jsonl.gz"}, {"path": "*.gz"}]
    data = Path(os.environ["CLUSTERUCB_DATA"]) / "pool"
    ref = ingest(PoolSettings.model_validate({"sources": sources}), base_folder=data, artifact_root=folder)
    chosen = limit_samples(read_sample_ids(ref), max_samples=samples, seed=0)
    return list(read_samples(ref, set(chosen)))


def target_settings(name: str) -> TargetSettings:
    """Return the settings of a target of the shared data."""
    path = Path(os.environ["CLUSTERUCB_DATA"]) / "targets" / f"{name}.jsonl.gz"
    return TargetSettings(name=name, validation=str(path), test=str(path))


def _tokens(settings: ModelSettings, samples: Sequence[Sample]) -> list[TokenizedSample]:
    chat = chat_format(load_tokenizer(settings), None)
    pairs = [(sample.sample_id, sample.messages) for sample in samples]
    whole = [
        outcome.sample
        for outcome in tokenize_batch(chat, pairs, max_length=100_000)
        if isinstance(outcome, Tokenized)
    ]
    return [_cut(sample) for sample in whole]


def _cut(sample: TokenizedSample) -> TokenizedSample:
    answer = int(np.argmax(sample.labels != -100))
    start = max(0, answer - MAX_PROMPT_TOKENS)
    kept = slice(start, start + MAX_TOKENS)
    return TokenizedSample(sample.sample_id, sample.input_ids[kept], sample.labels[kept])


def train_epoch(
    model: PeftModel, optimizer: torch.optim.Optimizer, samples: Sequence[TokenizedSample]
) -> None:
    """Train on samples in the order given, batch by batch."""
    model.train()
    for start in range(0, len(samples), BATCH):
        ids, labels = _padded(samples[start : start + BATCH])
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()


def adam_moments(model: PeftModel, optimizer: torch.optim.Optimizer) -> AdamMoments:
    """Return the state of the optimiser [p] in the order of the trainable parameters."""
    states = [optimizer.state[p] for p in model.parameters() if p.requires_grad]
    first, second = (
        np.concatenate([state[kind].numpy().ravel() for state in states])
        for kind in ("exp_avg", "exp_avg_sq")
    )
    return AdamMoments(first, second)


def _scores(
    model: PeftModel,
    pool: Sequence[TokenizedSample],
    moments: AdamMoments,
    target: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> tuple[NDArray[np.float64], NDArray[np.float16]]:
    lengths = np.array([sample.input_ids.size for sample in pool])
    features = np.zeros((len(pool), target[0].shape[1]), dtype=np.float16)
    scores = np.zeros((len(pool), int(target[1].max()) + 1))
    batches = plan_batches(lengths, max_batch_tokens=BATCH_TOKENS)
    for batch in iter_gradient_features(model, pool, batches, moments=moments):
        unit = batch.features / np.linalg.norm(batch.features, axis=1, keepdims=True)
        features[batch.indices] = unit
        scores[batch.indices] = subtask_scores(unit, *target)
    return scores, features


def _mean_states(model: PeftModel, samples: Sequence[TokenizedSample]) -> NDArray[np.float16]:
    lengths = np.array([sample.input_ids.size for sample in samples])
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    states = np.zeros((len(samples), layers + 1, hidden), dtype=np.float16)
    model.eval()
    for batch in plan_batches(lengths, max_batch_tokens=BATCH_TOKENS):
        ids, labels = _padded([samples[row] for row in batch])
        with torch.no_grad():
            found = model(input_ids=ids, output_hidden_states=True).hidden_states
        # a state predicts the token after it
        weights = (labels[:, 1:] != -100).float()
        weights /= weights.sum(dim=1, keepdim=True)
        means = [torch.einsum("bt,bth->bh", weights, layer[:, :-1]) for layer in found]
        states[batch] = torch.stack(means, dim=1).numpy()
    return states


def _padded(batch: Sequence[TokenizedSample]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(sample.input_ids.size for sample in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    labels = torch.full((len(batch), width), -100, dtype=torch.long)
    for row, sample in enumerate(batch):
        ids[row, : sample.input_ids.size] = torch.from_numpy(sample.input_ids.astype(np.int64))
        labels[row, : sample.labels.size] = torch.from_numpy(sample.labels.astype(np.int64))
    return ids, labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compute the trajectories that selection.py replays.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--periods", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    for number in range(chosen.seeds):
        for name in VALIDATION_ROWS:
            open_trajectory(
                name, seed=number, samples=chosen.samples, periods=chosen.periods, folder=chosen.folder
            )
            open_states(name, seed=number, samples=chosen.samples, folder=chosen.folder)
