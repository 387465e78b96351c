"""Clusters of the pool by the direction of its features at the first checkpoint: gradients or hidden states.

Reads feature shards and the artifact `candidates`; writes the artifact `clustering`. The clustering of a
changed pool follows an earlier one: samples go to the centres that are there, unless these fit too badly.
"""

import logging
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from clusterucb_core.artifacts import artifact_file, new_artifact, open_artifact, read_manifest
from clusterucb_core.clustering import (
    ClusterSettings,
    cluster_count,
    drift_limit,
    drift_of,
    nearest_centers,
    spherical_kmeans,
)
from clusterucb_core.features.forward import PartName
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.tokens import open_tokens
from clusterucb_core.records import ArtifactRef, Clustering, FloatArray
from clusterucb_core.seeds import child_rng
from clusterucb_core.stages.contexts import PoolView, pool_view
from clusterucb_core.stages.features import FeatureSettings, open_store, read_features, usable_samples
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.workspace import StageSpec, Workspace, resumable, stage_key, written

logger = logging.getLogger(__name__)

Means = dict[PartName, NDArray[np.float32]]


class ClusterSpec(StageSpec):
    """Spherical k-means over the candidates of a pool in one feature space.

    The space was computed from `tokens`: a candidate that has none there has no cluster. Of forward-only
    features `parts` are clustered. `followed` is an earlier clustering, of a pool that has changed since.
    """

    stage: str = "clustering"
    version: int = 3
    space: FeatureSpace
    tokens: ArtifactRef
    parts: tuple[PartName, ...] = ()
    candidates: ArtifactRef
    settings: ClusterSettings
    features: FeatureSettings
    seed: int
    followed: ArtifactRef | None = None


class ClusterFit(Frozen):
    """How a clustering fits its pool.

    Attributes:
        mean_distance: mean of 1 - cosine of the samples to their centres.
        at_clustering: what it was over the pool from which the centres were found.
        drift: by what share it has grown since.
        is_new: whether the centres were found for this pool.
    """

    mean_distance: float
    at_clustering: float
    drift: float
    is_new: bool


@dataclass(frozen=True)
class _Clustered:
    clustering: Clustering
    fit: ClusterFit
    means: Means


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
    found = _following(spec, ids, workspace) or _anew(spec, ids, workspace)
    labels, centers = found.clustering.labels, found.clustering.centers
    sizes = np.bincount(labels, minlength=len(centers)).tolist()
    manifest = {"k": len(centers), "n": len(ids), "sizes": sizes, "fit": found.fit.model_dump(mode="json")}
    with new_artifact(workspace.artifacts, spec.stage, stage_key(spec), manifest) as folder:
        np.save(folder / "labels.npy", labels.astype(np.int32))
        np.save(folder / "centers.npy", centers)
        np.savez(folder / "means.npz", **cast("dict[str, Any]", found.means))
        (folder / "sample_ids.txt").write_text("\n".join(ids), encoding="utf-8")
    return written(spec, workspace)


def read_clustering(ref: ArtifactRef) -> tuple[list[str], Clustering]:
    """Return the clustered sample ids [n] and their clustering."""
    folder = open_artifact(ref)
    ids = (folder / "sample_ids.txt").read_text(encoding="utf-8").split("\n")
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    centers = np.load(folder / "centers.npy", allow_pickle=False)
    return ids, Clustering(labels, centers)


def read_fit(ref: ArtifactRef) -> ClusterFit:
    """Return how a clustering fits its pool."""
    return ClusterFit(**read_manifest(ref)["fit"])


def _anew(spec: ClusterSpec, ids: list[str], workspace: Workspace) -> _Clustered:
    view = pool_view(open_store(spec.space, workspace), ids, spec.parts, width=spec.space.projection_dim)
    features = _directions(spec, ids, workspace, view)
    k = cluster_count(spec.settings.k, len(ids))
    labels, centers = spherical_kmeans(features, k, rng=child_rng(spec.seed, "clustering"))
    _, distance = nearest_centers(features, centers)
    fit = ClusterFit(mean_distance=distance, at_clustering=distance, drift=0.0, is_new=True)
    return _Clustered(Clustering(labels, centers), fit, view.means)


def _following(spec: ClusterSpec, ids: list[str], workspace: Workspace) -> _Clustered | None:
    """Assign the pool to the centres of an earlier clustering; None where they fit it too badly."""
    if spec.followed is None:
        return None
    _, earlier = read_clustering(spec.followed)
    means = _read_means(spec.followed)
    features = _directions(spec, ids, workspace, PoolView(spec.space.projection_dim, means))
    labels, distance = nearest_centers(features, earlier.centers)
    at_clustering = read_fit(spec.followed).at_clustering
    drift, limit = drift_of(distance, at_clustering), drift_limit(spec.settings)
    if drift > limit:
        logger.info(
            "the pool has drifted by %.3f from its clusters, above %.3f: clustered anew", drift, limit
        )
        return None
    fit = ClusterFit(mean_distance=distance, at_clustering=at_clustering, drift=drift, is_new=False)
    return _Clustered(Clustering(labels, earlier.centers), fit, means)


def _read_means(ref: ArtifactRef) -> Means:
    """Return the means of the parts that a clustering was found around; none for gradients."""
    with np.load(artifact_file(ref, "means.npz"), allow_pickle=False) as stored:
        return {cast("PartName", name): stored[name] for name in stored.files}


def _directions(spec: ClusterSpec, ids: list[str], workspace: Workspace, view: PoolView) -> FloatArray:
    """Return the unit rows [n, d] that are clustered: gradients, or parts of others around their mean."""
    if not spec.parts:
        return read_features(spec.space, ids, workspace)
    store = open_store(spec.space, workspace)
    # what does not differ from the mean has its direction from zero
    whole = PoolView(view.width, {name: np.zeros_like(mean) for name, mean in view.means.items()})
    rows = [
        np.where((found := view.directions(block)).any(axis=1, keepdims=True), found, whole.directions(block))
        for block in store.iter_blocks(ids)
    ]
    return np.concatenate(rows)
