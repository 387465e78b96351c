"""Select from your own conversations with your own model, in one process: no orchestrator, no catalog.

python examples/plain_python.py MODEL POOL.jsonl TARGET.jsonl 100

A line of the files is `{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from clusterucb_core.bandit.policies import LinUcb
from clusterucb_core.bandit.pulls import pull_arms
from clusterucb_core.clustering import cluster_count, spherical_kmeans
from clusterucb_core.features.gradients import gradient_features
from clusterucb_core.features.projections import RollSketch
from clusterucb_core.influence import influence_scores
from clusterucb_core.lm.chat import tokenize_messages


def select(model, tokenizer, *, pool, target, k, budget=0.2):
    """Return the k places in the pool that help the target most, best first, and the influence of each."""
    rng = np.random.default_rng(0)
    samples, goal = (tokenize_messages(tokenizer, texts, max_length=512) for texts in (pool, target))

    def features(rows):
        return gradient_features(model, rows, projection=RollSketch(dim=512, seed=0))

    # Clusters of like gradients are the arms; each is drawn in a random order.
    first = features(samples)
    labels, centers = spherical_kmeans(first, cluster_count("auto", len(samples)), rng=rng)
    arms = [rng.permutation(np.flatnonzero(labels == arm)) for arm in range(len(centers))]

    # A short warmup on a tenth of the pool: influence is that of the model on its way.
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    for row in rng.permutation(len(samples))[: len(samples) // 10]:
        ids, wanted = (torch.tensor(part)[None] for part in (samples[row].input_ids, samples[row].labels))
        model(input_ids=ids, labels=wanted).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    # Only what is drawn has its gradient computed there; the first gradients tell what to draw next.
    towards, subtask = features(goal), np.zeros(len(goal), dtype=int)
    log = pull_arms(
        arms,
        lambda rows: influence_scores(features([samples[row] for row in rows]), towards, subtask=subtask),
        policy=LinUcb(explore_fraction=0.1),
        budget_samples=int(budget * len(samples)),
        cold_start_fraction=0.0,
        round_samples=16,
        context=first,
        rng=rng,
    )
    best = np.argsort(-log.rewards)[:k]
    return log.samples[best], log.rewards[best]


def main(folder, pool, target, k):
    """Print the selected conversations, best first, each with its influence."""
    texts = [
        [json.loads(line)["messages"] for line in Path(name).read_text(encoding="utf-8").splitlines()]
        for name in (pool, target)
    ]
    model = AutoModelForCausalLM.from_pretrained(folder)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    places, influence = select(
        model, AutoTokenizer.from_pretrained(folder), pool=texts[0], target=texts[1], k=int(k)
    )
    for place, value in zip(places, influence, strict=True):
        print(json.dumps({"influence": float(value), "messages": texts[0][place]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
