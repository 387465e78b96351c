"""Random generators derived from one seed by name, so that no result depends on shards or workers."""

import hashlib

import numpy as np


def child_seed(seed: int, stage: str, key: str = "") -> int:
    """Return a 63-bit seed derived from a run's seed, a stage name and a key.

    Args:
        seed: the run's seed.
        stage: name of the stage that draws.
        key: name of a sample, an arm or a parameter; never of a shard or a worker.

    Returns:
        An integer in [0, 2**63), the same on every machine.
    """
    text = f"{seed}\x1f{stage}\x1f{key}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def child_rng(seed: int, stage: str, key: str = "") -> np.random.Generator:
    """Return a NumPy generator seeded by `child_seed`."""
    return np.random.default_rng(child_seed(seed, stage, key))
