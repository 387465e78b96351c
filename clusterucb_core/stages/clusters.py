"""Clusters of the pool by the direction of its features at the first checkpoint: gradients or hidden states.

Reads feature shards and the artifact `candidates`; writes the artifact `clustering`.
"""

from pathlib import Path

import numpy as np

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.clustering import ClusterSettings, cluster_count, spherical_kmeans
from clusterucb_core.features.forward import part_of
from clusterucb_core.records import ArtifactRef, Clustering, FloatArray
from clusterucb_core.seeds import child_rng
from clusterucb_core.stages.features import FeatureSettings, open_store, read_features, usable_samples
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.workspace import StageSpec, Workspace, resumable, stage_key, written

# a state of unit length that lies so near the mean of all has no direction from there
SAME_STATE = 1e-4


class ClusterSpec(StageSpec):
    """Spherical k-means over the candidates of a pool in one feature space."""

    stage: str = "clustering"
    version: int = 1
    space: FeatureSpace
    candidates: ArtifactRef
    settings: ClusterSettings
    features: FeatureSettings
    seed: int


@resumable
def run_clustering(spec: ClusterSpec, workspace: Workspace) -> ArtifactRef:
    """Cluster every candidate that has a feature."""
    ids, _ = usable_samples(
        spec.space,
        candidate_ids(spec.candidates),
        workspace=workspace,
        max_excluded_fraction=spec.features.max_excluded_fraction,
    )
    k = cluster_count(spec.settings.k, len(ids))
    features = _directions(spec.space, ids, workspace)
    labels, centers = spherical_kmeans(features, k, rng=child_rng(spec.seed, "clustering"))
    manifest = {"k": k, "n": len(ids), "sizes": np.bincount(labels, minlength=k).tolist()}
    with new_artifact(workspace.artifacts, spec.stage, stage_key(spec), manifest) as folder:
        np.save(folder / "labels.npy", labels.astype(np.int32))
        np.save(folder / "centers.npy", centers)
        (folder / "sample_ids.txt").write_text("\n".join(ids), encoding="utf-8")
    return written(spec, workspace)


def read_clustering(ref: ArtifactRef) -> tuple[list[str], Clustering]:
    """Return the clustered sample ids [n] and their clustering."""
    folder = Path(ref.path)
    ids = (folder / "sample_ids.txt").read_text(encoding="utf-8").split("\n")
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    centers = np.load(folder / "centers.npy", allow_pickle=False)
    return ids, Clustering(labels, centers)


def _directions(space: FeatureSpace, ids: list[str], workspace: Workspace) -> FloatArray:
    """Return the unit rows [n, d] that are clustered: gradients, or mean hidden states around their mean."""
    if space.kind != "forward":
        return read_features(space, ids, workspace)
    blocks = open_store(space, workspace).iter_blocks(ids)
    states = np.concatenate([part_of(block, "supervised", width=space.projection_dim) for block in blocks])
    # what all hidden states share is nearly all of their length, and tells none apart
    offsets = states - states.mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.linalg.norm(offsets, axis=1, keepdims=True)
    alike = lengths < SAME_STATE
    return np.where(alike, states, offsets / np.where(alike, 1.0, lengths))
