"""Clusters of the pool by the direction of its features at the first checkpoint: gradients or hidden states.

Reads feature shards and the artifact `candidates`; writes the artifact `clustering`.
"""

from pathlib import Path

import numpy as np

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.clustering import ClusterSettings, cluster_count, spherical_kmeans
from clusterucb_core.features.forward import PartName
from clusterucb_core.lm.tokens import open_tokens
from clusterucb_core.records import ArtifactRef, Clustering, FloatArray
from clusterucb_core.seeds import child_rng
from clusterucb_core.stages.contexts import PoolView, pool_view
from clusterucb_core.stages.features import FeatureSettings, open_store, read_features, usable_samples
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.workspace import StageSpec, Workspace, resumable, stage_key, written


class ClusterSpec(StageSpec):
    """Spherical k-means over the candidates of a pool in one feature space.

    The space was computed from `tokens`: a candidate that has none there has no cluster. Of forward-only
    features `parts` are clustered.
    """

    stage: str = "clustering"
    version: int = 2
    space: FeatureSpace
    tokens: ArtifactRef
    parts: tuple[PartName, ...] = ()
    candidates: ArtifactRef
    settings: ClusterSettings
    features: FeatureSettings
    seed: int


@resumable
def run_clustering(spec: ClusterSpec, workspace: Workspace) -> ArtifactRef:
    """Cluster every candidate that has a feature."""
    known = open_tokens(spec.tokens).rows
    ids, _ = usable_samples(
        spec.space,
        [sample for sample in candidate_ids(spec.candidates) if sample in known],
        workspace=workspace,
        max_excluded_fraction=spec.features.max_excluded_fraction,
    )
    k = cluster_count(spec.settings.k, len(ids))
    features = _directions(spec, ids, workspace)
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


def _directions(spec: ClusterSpec, ids: list[str], workspace: Workspace) -> FloatArray:
    """Return the unit rows [n, d] that are clustered: gradients, or parts of others around their mean."""
    if not spec.parts:
        return read_features(spec.space, ids, workspace)
    store = open_store(spec.space, workspace)
    view = pool_view(store, ids, spec.parts, width=spec.space.projection_dim)
    # what does not differ from the mean has its direction from zero
    whole = PoolView(view.width, {name: np.zeros_like(mean) for name, mean in view.means.items()})
    rows = [
        np.where((found := view.directions(block)).any(axis=1, keepdims=True), found, whole.directions(block))
        for block in store.iter_blocks(ids)
    ]
    return np.concatenate(rows)
