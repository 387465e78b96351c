"""Side information of pool samples: gradients at the first checkpoint that are paid for, or a forward pass.

Reads feature shards. The guess `< phi_0(z), gamma_t(v) >` sets old features of a sample against the target's
current ones: no gradient of a pool sample is computed for it. Without gradients, what the forward pass tells
takes their place, on both sides at the first checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clusterucb_core.features.forward import PartName, part_of
from clusterucb_core.features.store import FeatureStore
from clusterucb_core.influence import Aggregate, subtask_scores
from clusterucb_core.records import ArtifactRef, FloatArray
from clusterucb_core.seeds import child_rng
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.scores import TargetGradients, read_target_features
from clusterucb_core.stages.sides import ContextSource
from clusterucb_core.workspace import Workspace

# Columns of side information: a source beside another takes half of them. More were measured to gain on one
# target what they lose on another.
CONTEXT_WIDTH = 512
# so near the mean of all, a state of unit length has no direction from there
SAME_STATE = 1e-4


@dataclass(frozen=True)
class SideInformation:
    """What a contextual policy sees of n samples.

    `context` float32 [n, f]; `priors` hold a guess of the scores [n, s] from each source, the first of them
    on the scale of scores and the others brought to it.
    """

    context: NDArray[np.float32]
    priors: tuple[FloatArray, ...]

    @property
    def prior(self) -> FloatArray:
        """The guess of the scores [n, s] from the main source."""
        return self.priors[0]


def side_information(
    source: ContextSource,
    sample_ids: list[str],
    target: ArtifactRef,
    *,
    workspace: Workspace,
    aggregate: Aggregate,
) -> SideInformation:
    """Return folded features of samples, and their scores under the features of the target.

    The columns of a source weigh as much, together, as those of the source beside it: each block has the same
    total variance.

    Args:
        source: where side information comes from; its spaces hold every sample.
        sample_ids: the samples, n of them.
        target: the target.
        workspace: where the features lie.
        aggregate: what selects; it says which columns the scores have.

    Raises:
        MissingArtifact: a sample has no feature.
        InvalidTarget: a validation row has none.
    """
    sources = [source] if source.beside is None else [source, source.beside]
    contexts: list[NDArray[np.float32]] = []
    priors: list[FloatArray] = []
    for one in sources:
        store = open_store(one.space, workspace)
        goal = read_target_features(target, one.targets, workspace, aggregate=aggregate)
        columns: list[NDArray[np.float32]] = []
        guesses: list[FloatArray] = []
        # one thread: how a product is divided must not move a draw
        with threadpool_limits(limits=1, user_api="blas"):
            view = pool_view(store, sample_ids, one.parts, width=one.space.projection_dim)
            for block in store.iter_blocks(sample_ids):
                columns.append(fold(view.columns(block), CONTEXT_WIDTH // len(sources), seed=one.space.seed))
                guesses.append(_guess(view, block, goal, one.weights))
        contexts.append(balanced(np.concatenate(columns)))
        priors.append(np.concatenate(guesses))
    brought = [on_scale_of(other, priors[0]) for other in priors[1:]]
    return SideInformation(np.concatenate(contexts, axis=1), (priors[0], *brought))


def side_prior(
    source: ContextSource,
    sample_ids: list[str],
    target: ArtifactRef,
    *,
    workspace: Workspace,
    aggregate: Aggregate,
) -> FloatArray:
    """Return the prior [n, s] of `side_information` alone.

    Raises:
        MissingArtifact: a sample has no feature.
        InvalidTarget: a validation row has none.
    """
    store = open_store(source.space, workspace)
    goal = read_target_features(target, source.targets, workspace, aggregate=aggregate)
    with threadpool_limits(limits=1, user_api="blas"):
        view = pool_view(store, sample_ids, source.parts, width=source.space.projection_dim)
        blocks = store.iter_blocks(sample_ids)
        return np.concatenate([_guess(view, block, goal, source.weights) for block in blocks])


@dataclass(frozen=True)
class PoolView:
    """How features are read beside a pool's: gradients as they are, parts of others around their means.

    What all hidden states share is nearly all of their length, and tells none apart. `means` holds the mean
    over the pool of each part that is read; without parts, features are gradients.
    """

    width: int
    means: dict[PartName, NDArray[np.float32]]

    def columns(self, features: FloatArray) -> FloatArray:
        """Return rows [n, f] of features [n, d]: gradients, or the parts less their means, side by side."""
        if not self.means:
            return features
        parts = [part_of(features, name, width=self.width) - mean for name, mean in self.means.items()]
        return np.concatenate(parts, axis=1)

    def directions(self, features: FloatArray) -> FloatArray:
        """Return rows of unit length: gradients, or `columns`, 0 where nothing differs from the mean."""
        if not self.means:
            return features
        rows = self.columns(features)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.where(lengths > SAME_STATE, rows / np.maximum(lengths, SAME_STATE), 0.0)


def pool_view(
    store: FeatureStore, sample_ids: list[str], parts: Sequence[PartName], *, width: int
) -> PoolView:
    """Return how the features of samples are read.

    Args:
        store: holds them.
        sample_ids: the samples, at least one where parts are read.
        parts: of forward-only features; none for gradients.
        width: entries of the sketch in forward-only features.
    """
    sums: dict[PartName, NDArray[np.float64]] = {}
    for block in store.iter_blocks(sample_ids) if parts else ():
        for name in parts:
            part = part_of(block, name, width=width).sum(axis=0, dtype=np.float64)
            sums[name] = sums[name] + part if name in sums else part
    n = len(sample_ids)
    return PoolView(width, {name: (total / n).astype(np.float32) for name, total in sums.items()})


def _guess(view: PoolView, rows: FloatArray, goal: TargetGradients, weights: tuple[float, ...]) -> FloatArray:
    """Return a guess of the score [n, s] on every subtask: products of directions."""
    scores = [
        weight * subtask_scores(view.directions(rows), view.directions(features), goal.subtask)
        for weight, features in zip(weights, goal.by_checkpoint, strict=True)
    ]
    return np.sum(scores, axis=0)


def balanced(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide columns [n, f] by the root of their total variance, where they vary at all."""
    spread = float(np.sqrt(columns.var(axis=0, dtype=np.float64).sum()))
    return columns / np.float32(spread or 1.0)


def on_scale_of(guesses: FloatArray, prior: FloatArray) -> FloatArray:
    """Bring guesses [n, s] to the mean and spread that a prior has, column by column."""
    spread = guesses.std(axis=0)
    unit = (guesses - guesses.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    return unit * prior.std(axis=0) + prior.mean(axis=0)


def fold(features: FloatArray, width: int, *, seed: int) -> NDArray[np.float32]:
    """Project rows [n, d] to [n, width]: columns get random signs and are added up in groups of equal size.

    A count sketch with balanced buckets: inner products are kept in expectation. Rows that are short already
    are returned as they are.
    """
    d = features.shape[1]
    if d <= width:
        return np.asarray(features, dtype=np.float32)
    rng = child_rng(seed, "context")
    order = rng.permutation(d)
    signs = rng.choice(np.array([-1.0, 1.0], dtype=np.float32), size=d)
    groups = -(-d // width)
    folded = np.zeros((len(features), width), dtype=np.float32)
    for group in range(groups):
        columns = order[group * width : (group + 1) * width]
        folded[:, : len(columns)] += features[:, columns] * signs[columns]
    return folded
