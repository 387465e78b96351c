"""A map of the pool: the features that were clustered, laid out in two dimensions by t-SNE.

van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 9, 2008. Reads the feature store.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from clusterucb_core.errors import MissingArtifact
from clusterucb_core.records import FloatArray
from clusterucb_core.seeds import child_rng, child_seed
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.workspace import Workspace

MOST_SELECTED, MOST_OTHERS = 800, 1700
_FEWEST = 10
_COMPONENTS, _PERPLEXITY, _ITERATIONS = 50, 30.0, 500


@dataclass(frozen=True)
class PoolMap:
    """Places [n, 2] of samples, the last `n_chosen` of which were selected; `n_known` have features."""

    places: FloatArray
    n_chosen: int
    n_known: int


def map_pool(spec: DrawSpec, selected: Sequence[str], workspace: Workspace) -> PoolMap:
    """Lay out a part of the pool: the best of the selected samples, and others at random.

    Args:
        spec: the draws that selected; the features are those of its clustering.
        selected: ids of the selected samples in rank order.
        workspace: where the features lie.

    Raises:
        MissingArtifact: the features are gone, were never computed, or are too few for a map.
    """
    space = spec.first_space or next(iter(spec.spaces), None)
    if space is None:
        raise MissingArtifact("this selection was made without features")
    store = open_store(space, workspace)
    known = store.known
    pool = [sample for sample in candidate_ids(spec.candidates) if sample in known]
    if len(pool) < _FEWEST:
        raise MissingArtifact(
            f"features of {len(pool)} samples are there and a map takes {_FEWEST}: maintenance has removed "
            "them, or they were never computed; run the pipeline again to rebuild them"
        )
    best = [sample for sample in selected if sample in known][:MOST_SELECTED]
    chosen = set(selected)
    others = [sample for sample in pool if sample not in chosen]
    rng = child_rng(spec.seed, "pool map")
    picked = np.sort(rng.choice(len(others), size=min(MOST_OTHERS, len(others)), replace=False))
    shown = [*(others[int(row)] for row in picked), *best]  # the selected ones are drawn last, on top
    places = lay_out(store.read(shown), seed=child_seed(spec.seed, "pool map", "layout"))
    return PoolMap(places, len(best), len(pool))


def lay_out(features: FloatArray, *, seed: int) -> FloatArray:
    """Return places [n, 2] of features [n, d]: t-SNE from the first principal components.

    On unit rows squared distances are 2 - 2 cos, so neighbours are what points the same way. Same features
    and seed, same places.
    """
    n, d = features.shape
    with threadpool_limits(1):
        parts = PCA(min(_COMPONENTS, n, d), svd_solver="randomized", random_state=seed % 2**32)
        reduced = parts.fit_transform(features)
        layout = TSNE(
            perplexity=min(_PERPLEXITY, (n - 1) / 3),
            init="pca",
            max_iter=_ITERATIONS,
            random_state=seed % 2**32,
            n_jobs=1,
        )
        return np.asarray(layout.fit_transform(reduced), dtype=np.float64)
