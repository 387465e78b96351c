"""Side information of pool samples from features that are paid for: those at the first checkpoint.

Reads feature shards. The guess `< phi_0(z), gamma_t(v) >` sets old features of a sample against the target's
current gradients: no gradient of a pool sample is computed for it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clusterucb_core.influence import subtask_scores
from clusterucb_core.records import FloatArray
from clusterucb_core.seeds import child_rng
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.stages.scores import TargetGradients
from clusterucb_core.workspace import Workspace

# 1 GiB of float32 for the whole pool; the narrowest that was measured to rank well, and the widest whose
# eigendecomposition takes seconds.
CONTEXT_VALUES, NARROWEST, WIDEST = 2**28, 512, 2048


@dataclass(frozen=True)
class SideInformation:
    """What a contextual policy sees of n samples: `context` float32 [n, f], and `prior` [n, s]."""

    context: NDArray[np.float32]
    prior: FloatArray


def gradient_context(
    first: FeatureSpace,
    sample_ids: list[str],
    target: TargetGradients,
    *,
    weights: tuple[float, ...],
    workspace: Workspace,
) -> SideInformation:
    """Return folded first-checkpoint features, and their scores under the target gradients that count.

    Args:
        first: the feature space at the first checkpoint, which holds every sample.
        sample_ids: the samples, n of them.
        target: the target's gradients at the checkpoints whose influence is the reward.
        weights: of those checkpoints.
        workspace: where the features lie.

    Raises:
        MissingArtifact: a sample has no feature.
    """
    store = open_store(first, workspace)
    context: list[NDArray[np.float32]] = []
    prior: list[FloatArray] = []
    # one thread: how a product is divided must not move a draw
    with threadpool_limits(limits=1, user_api="blas"):
        for block in store.iter_blocks(sample_ids):
            context.append(fold(block, context_width(len(sample_ids)), seed=first.seed))
            prior.append(_guess(block, target, weights))
    return SideInformation(np.concatenate(context), np.concatenate(prior))


def gradient_prior(
    first: FeatureSpace,
    sample_ids: list[str],
    target: TargetGradients,
    *,
    weights: tuple[float, ...],
    workspace: Workspace,
) -> FloatArray:
    """Return the prior [n, s] of `gradient_context` alone.

    Raises:
        MissingArtifact: a sample has no feature.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        blocks = open_store(first, workspace).iter_blocks(sample_ids)
        return np.concatenate([_guess(block, target, weights) for block in blocks])


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


def _guess(features: FloatArray, target: TargetGradients, weights: tuple[float, ...]) -> FloatArray:
    scores = [subtask_scores(features, gradients, target.subtask) for gradients in target.by_checkpoint]
    return np.sum([weight * part for weight, part in zip(weights, scores, strict=True)], axis=0)
