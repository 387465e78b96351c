"""Finished shards as they lie on disk, compared with their digests: rows mapped and made unit again.

Files read: `features.npy` and the manifest of one shard.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb_core.artifacts import read_artifact
from clusterucb_core.errors import MissingArtifact, StaleArtifact
from clusterucb_core.features.shards import FEATURES_FILE
from clusterucb_core.records import ArtifactRef, Exclusion, IntArray

_UNIT_TOLERANCE = 0.01  # a unit row of any length keeps its norm to 0.1 % in 16 bits


@dataclass(frozen=True)
class StoredShard:
    """One shard's index: `places` maps a sample id to its row; `excluded` holds the samples without one."""

    folder: Path
    places: Mapping[str, int]
    excluded: tuple[Exclusion, ...]
    dim: int
    provenance: Mapping[str, str]

    def rows(self, rows: IntArray) -> NDArray[np.float32]:
        """Read rows of the file as float32 unit rows [n, d].

        Raises:
            MissingArtifact: the file is gone.
            StaleArtifact: a row is not what was written.
        """
        path = self.folder / FEATURES_FILE
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise MissingArtifact(f"{path} is missing; run the pipeline again to rebuild it") from error
        features = np.asarray(stored[rows], dtype=np.float32)
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.abs(norms[:, 0] - 1) < _UNIT_TOLERANCE))
        if len(bad):
            raise StaleArtifact(
                f"row {rows[bad[0]]} of {path} has length {norms[bad[0], 0]:.3g} instead of 1; delete the "
                "folder and run again"
            )
        features /= norms
        return features


@dataclass(frozen=True)
class ShardFeatures:
    """Content of one shard: unit rows, float32 [n, d], of `sample_ids` [n], and what was excluded."""

    sample_ids: tuple[str, ...]
    features: NDArray[np.float32]
    excluded: tuple[Exclusion, ...]


def read_shard(ref: ArtifactRef) -> ShardFeatures:
    """Read one shard whole.

    Args:
        ref: from `write_shard`.

    Returns:
        The features of the samples that have one, in the order of the shard, and the exclusions.

    Raises:
        MissingArtifact: the shard is gone.
        StaleArtifact: its file does not fit its manifest.
    """
    shard = open_shard(ref)
    rows = np.fromiter(shard.places.values(), dtype=np.int64, count=len(shard.places))
    return ShardFeatures(tuple(shard.places), shard.rows(rows), shard.excluded)


def open_shard(ref: ArtifactRef) -> StoredShard:
    """Read one shard's manifest, and compare its file with the digest there.

    Raises:
        MissingArtifact: the shard is gone.
        StaleArtifact: the manifest or the file is not what was written, or another shard's.
    """
    folder, manifest = read_artifact(ref)
    try:
        excluded = tuple(Exclusion(row[0], "features", row[1], row[2]) for row in manifest["excluded"])
        sample_ids, dim = manifest["sample_ids"], int(manifest["dim"])
        provenance = manifest["provenance"]
    except (KeyError, TypeError, IndexError) as error:
        raise StaleArtifact(
            f"the manifest of {ref.path} says not what a shard's does ({error!r}); delete the folder and run "
            "again"
        ) from error
    rejected = {exclusion.sample_id for exclusion in excluded}
    places = {
        sample_id: row
        for row, sample_id in enumerate(sample_ids)
        if sample_id is not None and sample_id not in rejected  # None: erased, its row is zero
    }
    return StoredShard(folder, places, excluded, dim, provenance)
