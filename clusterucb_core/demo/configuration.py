"""The run configuration of the demo, as YAML with paths relative to itself."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from clusterucb_core.demo.families import TARGET_FAMILY

HEADER = "# Written by `clusterucb demo`; paths are relative to this file.\n"


def demo_config(pool: Mapping[str, PurePosixPath], *, target: str, model: str, seed: int) -> str:
    """Return the configuration as YAML text.

    Args:
        pool: the file of each family, relative to the configuration.
        target: the target file.
        model: the model folder.
        seed: the run's seed.
    """
    tree: dict[str, Any] = {
        "pool": {"sources": [{"path": str(path), "name": family} for family, path in pool.items()]},
        "target": {"name": TARGET_FAMILY, "validation": target, "test": target},
        "model": {
            "base": model,
            "max_length": 256,
            "lora": {"r": 8, "alpha": 16, "dropout": 0.0},
        },
        "mode": "static",
        "warmup": {"fraction": 0.1, "epochs": 3, "learning_rate": 2.0e-3, "batch_size": 16},
        "features": {"projection": "auto", "projection_dim": 2048},
        "clusters": {"features": "gradient", "k": "auto"},
        "selection": {
            "policy": "ucb_beta",
            "budget_fraction": 0.25,
            "audit_fraction": 0.0,
            "top_fraction": 0.05,
            "round_samples": 64,
        },
        "finetune": {"epochs": 4, "learning_rate": 5.0e-3, "batch_size": 8},
        "evaluate": {"tasks": [], "baselines": ["zero_shot", "random", "full"], "random_seeds": 3},
        "seed": seed,
    }
    return HEADER + yaml.safe_dump(tree, sort_keys=False)
