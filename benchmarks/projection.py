"""What a projection keeps of real gradients: cosines, influence ranks and the most influential samples.

The tiny Llama with LoRA r 8 after 20 warmup steps; Adam features of real pool samples of up to 512 tokens;
GSM8K and BBH as targets. Unprojected features are the truth. Printed for each projection and dimension, and
kept as JSON: Pearson correlation of pairwise cosines, Spearman correlation of influence, recall of the true
top 5 %, each the mean over seeds; and the dimension from which that recall is at least 0.9.

    python benchmarks/projection.py [--samples 2000] [--seeds 3] [--out results/projection.json]
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch
from measuring import RESULTS, hardware, today, versions
from numpy.typing import NDArray
from scipy.stats import spearmanr
from trajectories import (
    VALIDATION_ROWS,
    adam_moments,
    pool_samples,
    target_settings,
    tiny_llama_settings,
    train_epoch,
)

from clusterucb_core.features.gradients import gradient_features
from clusterucb_core.features.projections import PROJECTION_KINDS, Projector
from clusterucb_core.features.sinks import trainable_parameters
from clusterucb_core.influence import aggregate_scores, recall_at_k, subtask_scores, top_k
from clusterucb_core.lm.chat import Tokenized, chat_format, tokenize_batch
from clusterucb_core.lm.loading import load_tokenizer
from clusterucb_core.lm.lora import new_adapter
from clusterucb_core.records import FloatArray, IntArray, Sample, TokenizedSample
from clusterucb_core.seeds import child_rng
from clusterucb_core.targets.catalog import load_target, subtask_index, validation_samples

RANK, MAX_LENGTH = 8, 512
WARMUP_STEPS, BATCH, LEARNING_RATE = 20, 16, 1e-3
DIMS = (512, 1024, 2048, 4096, 8192, 16384)
TOP_FRACTION, GOOD_RECALL = 0.05, 0.9
PAIRED = 600  # samples whose pairwise cosines are compared
BLOCK = 256  # rows projected at once


@dataclass(frozen=True)
class Gradients:
    """Unprojected gradients of one seed.

    `pool` float32 [n, p], Adam features; `targets` by name: plain gradients [v, p] of the validation samples
    and their subtasks [v]; `parameters`: name and entries of each trainable parameter, in the order of p.
    """

    pool: NDArray[np.float32]
    targets: Mapping[str, tuple[NDArray[np.float32], IntArray]]
    parameters: Sequence[tuple[str, int]]


def real_gradients(*, samples: int, seed: int, folder: Path) -> Gradients:
    """Train the warmup of one seed and compute the gradients of pool and targets.

    Args:
        samples: pool samples.
        seed: of the adapter and of the warmup's order.
        folder: where the pool is ingested.
    """
    settings = tiny_llama_settings(rank=RANK)
    pool = _tokens(settings, pool_samples(samples, folder))
    model = new_adapter(settings, "cpu", seed)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.0
    )
    order = child_rng(seed, "projection benchmark").permutation(len(pool))[: WARMUP_STEPS * BATCH]
    train_epoch(model, optimizer, [pool[row] for row in order])
    targets = {}
    for name, rows in VALIDATION_ROWS.items():
        goal = load_target(target_settings(name), Path())
        validation = _tokens(settings, validation_samples(goal)[:rows])
        targets[name] = (gradient_features(model, validation), subtask_index(goal)[1][: len(validation)])
    return Gradients(
        pool=gradient_features(model, pool, adam_moments(model, optimizer)),
        targets=targets,
        parameters=[(name, p.numel()) for name, p in trainable_parameters(model).items()],
    )


def _tokens(settings: Any, samples: Sequence[Sample]) -> list[TokenizedSample]:
    chat = chat_format(load_tokenizer(settings), None)
    pairs = [(sample.sample_id, sample.messages) for sample in samples]
    outcomes = tokenize_batch(chat, pairs, max_length=MAX_LENGTH)
    return [outcome.sample for outcome in outcomes if isinstance(outcome, Tokenized)]


def projected(
    rows: NDArray[np.float32], projector: Projector, parameters: Sequence[tuple[str, int]]
) -> FloatArray:
    """Return unit rows [n, dim] of gradients [n, p], projected parameter by parameter."""
    sums = torch.zeros(len(rows), projector.projection.dim)
    start = 0
    for name, entries in parameters:
        for first in range(0, len(rows), BLOCK):
            part = torch.from_numpy(rows[first : first + BLOCK, start : start + entries].copy())
            projector.add(name, part, sums[first : first + BLOCK])
        start += entries
    return unit_rows(sums.numpy())


def unit_rows(rows: FloatArray) -> FloatArray:
    """Return the rows at unit length."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def influence(pool: FloatArray, validation: FloatArray, subtasks: IntArray) -> FloatArray:
    """Return the largest subtask mean of each pool sample [n]."""
    return np.asarray(aggregate_scores(subtask_scores(pool, validation, subtasks), "max"))


def compare(found: FloatArray, exact: FloatArray) -> dict[str, float]:
    """Compare influence [n] with the exact one: rank correlation, and recall of the top 5 %."""
    k = int(len(exact) * TOP_FRACTION)
    return {
        "spearman_of_influence": float(spearmanr(found, exact).statistic),
        "recall_of_top": recall_at_k(exact, top_k(found, k), k),
    }


def cosine_correlation(found: FloatArray, exact: FloatArray) -> float:
    """Return Pearson's correlation of the pairwise cosines of unit rows."""
    above = np.triu_indices(len(exact), 1)
    return float(np.corrcoef((found @ found.T)[above], (exact @ exact.T)[above])[0, 1])


def rows_of(gradients: Gradients, *, seed: int, dims: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the figures of every projection, dimension and target for one seed."""
    pool = unit_rows(gradients.pool)
    exact = {
        name: influence(pool, unit_rows(rows), subtasks)
        for name, (rows, subtasks) in gradients.targets.items()
    }
    device = torch.device("cpu")
    for kind, variant in PROJECTION_KINDS.items():
        for dim in dims:
            projector = Projector(variant(dim=dim, seed=seed), device, torch.float32)
            sketched = projected(gradients.pool, projector, gradients.parameters)
            pearson = cosine_correlation(sketched[:PAIRED], pool[:PAIRED])
            for name, (rows, subtasks) in gradients.targets.items():
                found = influence(sketched, projected(rows, projector, gradients.parameters), subtasks)
                case = {"projection": kind, "dim": dim, "target": name, "seed": seed}
                yield case | {"pearson_of_cosines": pearson} | compare(found, exact[name])


def summary(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Return the mean over seeds of every figure, one row a target, projection and dimension."""
    keys, figures = (
        ["target", "projection", "dim"],
        ["pearson_of_cosines", "spearman_of_influence", "recall_of_top"],
    )
    means = [pl.col(name).mean() for name in figures]
    return pl.DataFrame(list(rows)).group_by(keys).agg(means).sort(keys)


def sufficient_dims(table: pl.DataFrame) -> dict[str, int | None]:
    """Return the smallest dimension from which on recall is at least 0.9, by target and projection."""
    found: dict[str, int | None] = {}
    for (target, projection), group in table.group_by(["target", "projection"], maintain_order=True):
        poor = group.filter(pl.col("recall_of_top") < GOOD_RECALL)["dim"].to_list()
        enough = group.filter(pl.col("dim") > max(poor, default=0))["dim"].to_list()
        found[f"{target}, {projection}"] = min(enough, default=None)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Compare projections on real gradients.")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dims", type=lambda text: [int(dim) for dim in text.split(",")], default=list(DIMS))
    parser.add_argument("--out", type=Path, default=RESULTS / "projection.json")
    chosen = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for seed in range(chosen.seeds):
            gradients = real_gradients(samples=chosen.samples, seed=seed, folder=Path(folder))
            rows += rows_of(gradients, seed=seed, dims=chosen.dims)
    table = summary(rows)
    result = {
        "benchmark": "projection",
        "date": today(),
        "command": "python benchmarks/projection.py "
        + " ".join(sys.argv[1:] if arguments is None else arguments),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions("clusterucb", "torch", "transformers", "peft", "numpy"),
        "settings": {
            "samples": chosen.samples,
            "seeds": chosen.seeds,
            "rank": RANK,
            "max_length": MAX_LENGTH,
        },
        "dim_from_which_recall_is_0.9": sufficient_dims(table),
        "means": table.to_dicts(),
        "rows": rows,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with pl.Config(tbl_rows=-1, float_precision=3, tbl_hide_dataframe_shape=True):
        print(table)
    print(json.dumps(result["dim_from_which_recall_is_0.9"], indent=2))


if __name__ == "__main__":
    main()
