"""Side information of pool samples: gradients at the first checkpoint that are paid for, or a forward pass.

Reads feature shards. The guess `< phi_0(z), gamma_t(v) >` sets old features of a sample against the target's
current ones: no gradient of a pool sample is computed for it. Without gradients, the last layer's take their
place.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clusterucb_core.features.forward import PARTS, part_of
from clusterucb_core.features.store import FeatureStore
from clusterucb_core.influence import Aggregate, subtask_scores
from clusterucb_core.records import ArtifactRef, FloatArray
from clusterucb_core.seeds import child_rng
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.scores import TargetGradients, read_target_features
from clusterucb_core.stages.sides import ContextSource
from clusterucb_core.workspace import Workspace

# 1 GiB of float32 for the whole pool; the narrowest that was measured to rank well, and the widest whose
# eigendecomposition takes seconds.
CONTEXT_VALUES, NARROWEST, WIDEST = 2**28, 512, 2048


@dataclass(frozen=True)
class SideInformation:
    """What a contextual policy sees of n samples: `context` float32 [n, f], and `prior` [n, s]."""

    context: NDArray[np.float32]
    prior: FloatArray


def side_information(
    source: ContextSource,
    sample_ids: list[str],
    target: ArtifactRef,
    *,
    workspace: Workspace,
    aggregate: Aggregate,
) -> SideInformation:
    """Return folded features of samples, and their scores under the features of the target.

    Args:
        source: where side information comes from; its space holds every sample.
        sample_ids: the samples, n of them.
        target: the target.
        workspace: where the features lie.
        aggregate: what selects; it says which columns the scores have.

    Raises:
        MissingArtifact: a sample has no feature.
        InvalidTarget: a validation row has none.
    """
    store, width = open_store(source.space, workspace), context_width(len(sample_ids))
    goal = read_target_features(target, source.targets, workspace, aggregate=aggregate)
    context: list[NDArray[np.float32]] = []
    prior: list[FloatArray] = []
    # one thread: how a product is divided must not move a draw
    with threadpool_limits(limits=1, user_api="blas"):
        for columns, guide in _columns(source, store, sample_ids):
            context.append(fold(columns, width, seed=source.space.seed))
            prior.append(_guess(guide, goal, source))
    return SideInformation(np.concatenate(context), np.concatenate(prior))


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
    goal = read_target_features(target, source.targets, workspace, aggregate=aggregate)
    with threadpool_limits(limits=1, user_api="blas"):
        blocks = open_store(source.space, workspace).iter_blocks(sample_ids)
        return np.concatenate([_guess(_guide(block, source), goal, source) for block in blocks])


def _columns(
    source: ContextSource, store: FeatureStore, sample_ids: list[str]
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield, block by block, what is regressed on, and the rows whose products with the target's guess."""
    if source.space.kind != "forward":
        for block in store.iter_blocks(sample_ids):
            yield block, block
        return
    scaling = part_scaling(store, sample_ids, width=source.space.projection_dim)
    for block in store.iter_blocks(sample_ids):
        yield scaling.apply(block), _guide(block, source)


def _guide(rows: FloatArray, source: ContextSource) -> FloatArray:
    """Return what of features guesses at influence: of forward-only ones the gradient of the last layer."""
    return (
        part_of(rows, "outer", width=source.space.projection_dim) if source.space.kind == "forward" else rows
    )


def _guess(rows: FloatArray, goal: TargetGradients, source: ContextSource) -> FloatArray:
    """Return a guess of the score [n, s] on every subtask."""
    scores = [
        weight * subtask_scores(rows, _guide(features, source), goal.subtask)
        for weight, features in zip(source.weights, goal.by_checkpoint, strict=True)
    ]
    return np.sum(scores, axis=0)


@dataclass(frozen=True)
class PartScaling:
    """What brings the parts of forward-only features to mean 0 and to one spread: offsets and spreads."""

    width: int
    offsets: dict[str, NDArray[np.float32]]
    spreads: dict[str, float]

    def apply(self, features: FloatArray) -> FloatArray:
        """Return the parts of rows [n, d], each less its offset and over its spread, side by side [n, d]."""
        return np.concatenate(
            [
                (part_of(features, name, width=self.width) - self.offsets[name]) / self.spreads[name]
                for name in PARTS
            ],
            axis=1,
        )


def part_scaling(store: FeatureStore, sample_ids: list[str], *, width: int) -> PartScaling:
    """Return the mean of each part over samples, and its root mean square distance from there.

    Hidden states share an offset that is many times longer than what tells them apart, and a regression with
    one penalty sees what is long.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    for block in store.iter_blocks(sample_ids):
        for name in PARTS:
            part = part_of(block, name, width=width).sum(axis=0, dtype=np.float64)
            sums[name] = sums[name] + part if name in sums else part
    means = {name: total / len(sample_ids) for name, total in sums.items()}
    # parts are unit rows, so their mean square distance from the mean is 1 - |mean|^2
    variances = {name: 1.0 - float(mean @ mean) for name, mean in means.items()}
    return PartScaling(
        width=width,
        offsets={name: mean.astype(np.float32) for name, mean in means.items()},
        spreads={name: float(np.sqrt(max(variance, 1e-6))) for name, variance in variances.items()},
    )


def context_width(n_samples: int) -> int:
    """Return how many columns of side information a pool of so many samples gets."""
    return min(WIDEST, max(NARROWEST, CONTEXT_VALUES // max(1, n_samples)))


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
