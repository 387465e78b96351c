"""Features of samples overwritten in the shards that hold them, and in centers that are nothing else.

Reads and writes feature shards and artifacts `clustering`. Rows are overwritten where they lie, so that no
copy of the old bytes stays on the disk. The manifest says first which rows are to be zero, and the digest of
the file as it will be then: after a kill the next erasure goes on, and before it the artifact counts as
damaged.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clusterucb_core.erasure.folders import manifest_of, write_manifest
from clusterucb_core.features.shards import FEATURES_FILE
from clusterucb_core.records import IntArray
from clusterucb_core.seals import FileDigest, check_files

CENTERS_FILE = "centers.npy"
_OVERWRITING = "overwriting"
_BLOCK_ROWS = 1024

_Forget = Callable[[dict[str, Any], IntArray], dict[str, Any]]


def erase_from_shard(folder: Path, sample_ids: frozenset[str]) -> bool:
    """Overwrite the features of samples in a shard; return whether it held any.

    The rows of the others stay where they are; the shard does not know the samples any more.

    Raises:
        StaleArtifact: it is damaged.
    """
    went_on = _go_on(folder, FEATURES_FILE, _without_samples)
    held: list[str | None] = manifest_of(folder)[0]["sample_ids"]
    rows = np.array([row for row, sample_id in enumerate(held) if sample_id in sample_ids], dtype=np.int64)
    if not len(rows):
        return went_on
    _announce(folder, FEATURES_FILE, rows)
    _go_on(folder, FEATURES_FILE, _without_samples)
    return True


def erase_from_clustering(folder: Path, sample_ids: frozenset[str]) -> bool:
    """Overwrite the centers of clusters that hold erased samples only; return whether there were any.

    Such a center is the direction of its samples; one with other members is a mean that names nobody.

    Raises:
        StaleArtifact: it is damaged.
    """
    went_on = _go_on(folder, CENTERS_FILE, _as_it_is)
    check_files(folder, manifest_of(folder)[1])
    ids = (folder / "sample_ids.txt").read_text(encoding="utf-8").split("\n")
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    erased = np.array([sample_id in sample_ids for sample_id in ids], dtype=np.bool_)
    alone = np.setdiff1d(labels[erased], labels[~erased])
    if not len(alone) or not np.load(folder / CENTERS_FILE, allow_pickle=False)[alone].any():
        return went_on
    _announce(folder, CENTERS_FILE, alone)
    _go_on(folder, CENTERS_FILE, _as_it_is)
    return True


def _announce(folder: Path, name: str, rows: IntArray) -> None:
    content, seal = manifest_of(folder)
    # what is damaged must not get a digest that says it is as it should be
    check_files(folder, seal, (name,))
    write_manifest(
        folder, content | {_OVERWRITING: rows.tolist()}, {name: _digest_after(folder / name, rows)}
    )


def _go_on(folder: Path, name: str, forget: _Forget) -> bool:
    """Overwrite the rows that were announced; return whether any were."""
    content, seal = manifest_of(folder)
    if (announced := content.pop(_OVERWRITING, None)) is None:
        return False
    rows = np.array(announced, dtype=np.int64)
    stored = np.load(folder / name, mmap_mode="r+", allow_pickle=False)
    stored[rows] = 0
    stored.flush()
    check_files(folder, seal, (name,))
    # afterwards: while the rows are not zero the manifest has to say which ones they are
    write_manifest(folder, forget(content, rows))
    return True


def _without_samples(content: dict[str, Any], rows: IntArray) -> dict[str, Any]:
    held: list[str | None] = content["sample_ids"]
    erased = {held[row] for row in rows.tolist()}
    return content | {
        "sample_ids": [None if sample_id in erased else sample_id for sample_id in held],
        "excluded": [row for row in content["excluded"] if row[0] not in erased],
    }


def _as_it_is(content: dict[str, Any], _rows: IntArray) -> dict[str, Any]:
    return content


def _digest_after(path: Path, rows: IntArray) -> FileDigest:
    """Return the digest that an array's file will have when some rows of it are zero."""
    size, stored = path.stat().st_size, np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(size - stored.nbytes))
    for start in range(0, len(stored), _BLOCK_ROWS):
        block = np.array(stored[start : start + _BLOCK_ROWS])
        block[rows[(rows >= start) & (rows < start + len(block))] - start] = 0
        digest.update(block.tobytes())
    return FileDigest(bytes=size, sha256=digest.hexdigest())
