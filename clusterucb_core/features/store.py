"""The feature store: every finished shard of one feature space, found by sample id.

Files read: `<artifact root>/features/<feature space>/<shard>/`. The folder is the index: whatever shard
bears its final name is complete, so there is nothing to register and nothing to repair after a crash. Where
the root mirrors an object store, shards that other machines have put there are fetched.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb_core.artifacts import artifact_keys, find_artifact
from clusterucb_core.errors import MissingArtifact, StaleArtifact
from clusterucb_core.features.shard_files import ShardFeatures, StoredShard, open_shard, read_shard
from clusterucb_core.features.shards import (
    RowSource,
    Shard,
    plan_shards,
    remaining_shard,
    shard_stage,
    write_rows,
    write_shard,
)
from clusterucb_core.records import ArtifactRef, Exclusion

__all__ = [
    "FeatureStore",
    "RowSource",
    "Shard",
    "ShardFeatures",
    "open_feature_store",
    "plan_shards",
    "read_shard",
    "remaining_shard",
    "write_rows",
    "write_shard",
]


@dataclass(frozen=True)
class FeatureStore:
    """The features of one space as its folder stood on opening.

    `shards` maps a fingerprint to its shard; `shard_of` a sample id to the fingerprint of the shard that
    holds its feature; `excluded` holds the samples that were tried and have none; `dim` is the length of a
    row (0 while there is no shard).
    """

    feature_space: str
    shards: Mapping[str, StoredShard]
    shard_of: Mapping[str, str]
    excluded: Mapping[str, Exclusion]
    dim: int

    @property
    def known(self) -> frozenset[str]:
        """Ids of the samples that have a feature."""
        return frozenset(self.shard_of)

    def missing(self, sample_ids: Sequence[str]) -> list[str]:
        """Return the ids that were never tried, in the order given; excluded samples are not missing."""
        return [i for i in sample_ids if i not in self.shard_of and i not in self.excluded]

    def locations(self, sample_ids: Sequence[str]) -> list[tuple[str, int]]:
        """Return (shard fingerprint, row in the shard) of each id.

        Raises:
            MissingArtifact: a sample has no feature.
        """
        for sample_id in sample_ids:
            if sample_id not in self.shard_of:
                raise MissingArtifact(self._absence(sample_id))
        return [(self.shard_of[i], self.shards[self.shard_of[i]].places[i]) for i in sample_ids]

    def provenance(self, sample_id: str) -> Mapping[str, str]:
        """Return what was noted when the sample's feature was written, for instance the run.

        Raises:
            MissingArtifact: the sample has no feature.
        """
        return self.shards[self.locations([sample_id])[0][0]].provenance

    def read(self, sample_ids: Sequence[str]) -> NDArray[np.float32]:
        """Read features from disk.

        Args:
            sample_ids: samples in any order, repeats allowed.

        Returns:
            Unit rows, float32 [n, d], in the order given.

        Raises:
            MissingArtifact: a sample has no feature, or a shard was deleted meanwhile.
            StaleArtifact: a shard's rows are not what was written.
        """
        by_shard: dict[str, list[tuple[int, int]]] = {}
        for position, (shard, row) in enumerate(self.locations(sample_ids)):
            by_shard.setdefault(shard, []).append((row, position))
        features = np.empty((len(sample_ids), self.dim), dtype=np.float32)
        for shard, pairs in by_shard.items():
            rows, positions = np.array(sorted(pairs), dtype=np.int64).T
            features[positions] = self.shards[shard].rows(rows)
        return features

    def iter_blocks(self, sample_ids: Sequence[str], *, rows: int = 4096) -> Iterator[NDArray[np.float32]]:
        """Yield the features of many samples block by block: unit rows, float32 [up to `rows`, d]."""
        for start in range(0, len(sample_ids), rows):
            yield self.read(sample_ids[start : start + rows])

    def _absence(self, sample_id: str) -> str:
        if sample_id in self.excluded:
            exclusion = self.excluded[sample_id]
            return f"sample {sample_id!r} was excluded ({exclusion.reason}: {exclusion.detail}); leave it out"
        return (
            f"sample {sample_id!r} has no feature among the {len(self.shard_of)} of feature space "
            f"{self.feature_space!r}; compute what `missing` lists first"
        )


def open_feature_store(artifact_root: Path, feature_space: str) -> FeatureStore:
    """Open the store over all finished shards; drafts of a killed run are ignored.

    A sample that two shards hold is read from the one with the lower fingerprint, and one that only some
    shard could not compute counts as known.

    Args:
        artifact_root: folder of all artifacts.
        feature_space: fingerprint of everything that determines a feature.

    Returns:
        The store as the folder stands now.

    Raises:
        StaleArtifact: a shard's file does not fit its manifest, or shards differ in the length of a row.
    """
    shards = {ref.fingerprint: open_shard(ref) for ref in _finished_shards(artifact_root, feature_space)}
    dims = {shard.dim for shard in shards.values()}
    if len(dims) > 1:
        raise StaleArtifact(
            f"shards of feature space {feature_space!r} have rows of lengths {sorted(dims)}; delete "
            f"{artifact_root / shard_stage(feature_space)} and run again"
        )
    shard_of: dict[str, str] = {}
    excluded: dict[str, Exclusion] = {}
    for name, shard in shards.items():
        for sample_id in shard.places:
            shard_of.setdefault(sample_id, name)
        excluded.update((exclusion.sample_id, exclusion) for exclusion in shard.excluded)
    lost = {sample_id: row for sample_id, row in excluded.items() if sample_id not in shard_of}
    return FeatureStore(feature_space, shards, shard_of, lost, next(iter(dims), 0))


def _finished_shards(artifact_root: Path, feature_space: str) -> Iterator[ArtifactRef]:
    stage = shard_stage(feature_space)
    for name in artifact_keys(artifact_root, stage):
        if (ref := find_artifact(artifact_root, stage, name)) is not None:
            yield ref
