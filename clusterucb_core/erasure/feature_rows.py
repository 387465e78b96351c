"""Features of samples overwritten in the shards that hold them, and in centers that are nothing else.

Reads and writes feature shards and artifacts `clustering`. Rows are overwritten where they lie: zero again is
zero, so a kill does no harm, and no copy of the old bytes stays on the disk.
"""

import json
from pathlib import Path

import numpy as np

from clusterucb_core.artifacts import MANIFEST
from clusterucb_core.erasure.folders import write_manifest
from clusterucb_core.features.shards import FEATURES_FILE
from clusterucb_core.records import IntArray


def erase_from_shard(folder: Path, sample_ids: frozenset[str]) -> bool:
    """Overwrite the features of samples in a shard; return whether it held any.

    The rows of the others stay where they are; the shard does not know the samples any more.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    held: list[str | None] = manifest["sample_ids"]
    rows = np.array([row for row, sample_id in enumerate(held) if sample_id in sample_ids], dtype=np.int64)
    if not len(rows):
        return False
    _overwrite(folder / FEATURES_FILE, rows)
    # afterwards: while the rows are not zero the manifest has to say which ones they are
    manifest["sample_ids"] = [None if sample_id in sample_ids else sample_id for sample_id in held]
    manifest["excluded"] = [row for row in manifest["excluded"] if row[0] not in sample_ids]
    write_manifest(folder, manifest)
    return True


def erase_from_clustering(folder: Path, sample_ids: frozenset[str]) -> bool:
    """Overwrite the centers of clusters that hold erased samples only; return whether there were any.

    Such a center is the direction of its samples; one with other members is a mean that names nobody.
    """
    ids = (folder / "sample_ids.txt").read_text(encoding="utf-8").split("\n")
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    erased = np.array([sample_id in sample_ids for sample_id in ids], dtype=np.bool_)
    alone = np.setdiff1d(labels[erased], labels[~erased])
    if not len(alone) or not np.load(folder / "centers.npy", allow_pickle=False)[alone].any():
        return False
    _overwrite(folder / "centers.npy", alone)
    return True


def _overwrite(path: Path, rows: IntArray) -> None:
    stored = np.load(path, mmap_mode="r+", allow_pickle=False)
    stored[rows] = 0
    stored.flush()
