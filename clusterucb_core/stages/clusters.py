"""Clusters of the pool by the direction of its features at the first checkpoint.

Reads feature shards and the artifact `candidates`; writes the artifact `clustering`.
"""

from pathlib import Path

import numpy as np

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.clustering import ClusterSettings, cluster_count, spherical_kmeans
from clusterucb_core.errors import InvalidConfig
from clusterucb_core.records import ArtifactRef, Clustering
from clusterucb_core.seeds import child_rng
from clusterucb_core.stages.features import FeatureSettings, read_features, usable_samples
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.workspace import StageSpec, Workspace, resumable, stage_key, written


class ClusterSpec(StageSpec):
    """Spherical k-means over the candidates of a pool in one feature space."""

    stage: str = "clustering"
    version: int = 1
    space: FeatureSpace
    candidates: ArtifactRef
    settings: ClusterSettings
    features: FeatureSettings
    seed: int


def check_clusters(settings: ClusterSettings) -> None:
    """Refuse settings that name what this version does not do.

    Raises:
        InvalidConfig: clusters of hidden states are asked for.
    """
    if settings.features != "gradient":
        raise InvalidConfig(
            f"clusters.features={settings.features} is not available in this version; use gradient"
        )


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
    features = read_features(spec.space, ids, workspace)
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
