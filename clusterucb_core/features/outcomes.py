"""What becomes of each sample of a batch: a feature, or an exclusion with its reason."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb_core.features.engine import BatchGradients
from clusterucb_core.features.token_rows import Reason, TokenLimits, TokenRow, unusable_reason
from clusterucb_core.records import IntArray

logger = logging.getLogger(__name__)

Compute = Callable[[Sequence[TokenRow]], BatchGradients]


@dataclass(frozen=True)
class Outcome:
    """One sample's feature, float32 [width], with its mean state [h], or why it is excluded."""

    feature: NDArray[np.float32] | None = None
    state: NDArray[np.float32] | None = None
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class FeatureBatch:
    """Features of one planned batch.

    `indices` [b] into the samples; `features` float32 [b, d], unit rows if projected, else [b, p]; `states`
    float32 [b, h], mean final hidden states ([0, 0] where no sample is usable);
    `excluded` holds (index, reason, detail) of the batch's unusable samples; `ways`, from `ways_summary`,
    says how gradients are computed by the end of the batch.
    """

    indices: IntArray
    features: NDArray[np.float32]
    states: NDArray[np.float32]
    excluded: tuple[tuple[int, str, str], ...]
    ways: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict[str, Mapping[str, int | str]])


def feature_batch(indices: IntArray, outcomes: Sequence[Outcome], *, width: int) -> FeatureBatch:
    """Set the samples of a batch that have a feature apart from those that have none."""
    kept: list[int] = []
    rows: list[NDArray[np.float32]] = []
    states: list[NDArray[np.float32]] = []
    excluded: list[tuple[int, str, str]] = []
    for index, outcome in zip(indices.tolist(), outcomes, strict=True):
        if outcome.feature is not None and outcome.state is not None:
            kept.append(index)
            rows.append(outcome.feature)
            states.append(outcome.state)
        else:
            excluded.append((index, outcome.reason or "", outcome.detail))
    return FeatureBatch(
        indices=np.array(kept, dtype=np.int64),
        features=np.stack(rows) if rows else np.zeros((0, width), dtype=np.float32),
        states=np.stack(states) if states else np.zeros((0, 0), dtype=np.float32),
        excluded=tuple(excluded),
    )


def batch_outcomes(
    compute: Compute, samples: Sequence[TokenRow], *, limits: TokenLimits, unit_rows: bool
) -> list[Outcome]:
    """Compute one batch so that neither a bad sample nor a lack of memory harms the others.

    Args:
        compute: what turns usable samples into features.
        samples: the batch.
        limits: what the model can read.
        unit_rows: whether to scale features to unit length.

    Returns:
        One outcome for each sample, in order.

    Raises:
        InvalidModel: token ids outside the vocabulary.
    """
    outcomes: list[Outcome | None] = [None] * len(samples)
    usable: list[int] = []
    for index, sample in enumerate(samples):
        bad = unusable_reason(sample, limits)
        if bad is None:
            usable.append(index)
        else:
            outcomes[index] = Outcome(reason=bad[0], detail=bad[1])
    computed = _computed(compute, [samples[i] for i in usable], unit_rows=unit_rows)
    for index, outcome in zip(usable, computed, strict=True):
        outcomes[index] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def _computed(compute: Compute, samples: Sequence[TokenRow], *, unit_rows: bool) -> list[Outcome]:
    if not samples:
        return []
    gradients = _gradients_or_none(compute, samples)
    if gradients is None:
        return _in_halves(compute, samples, unit_rows=unit_rows)
    outcomes = _judged(gradients, unit_rows=unit_rows)
    if len(samples) == 1:
        return outcomes
    # a sample that is bad only in company was infected by a neighbour: alone it tells the truth
    return [
        _computed(compute, [sample], unit_rows=unit_rows)[0] if _is_non_finite(outcome) else outcome
        for sample, outcome in zip(samples, outcomes, strict=True)
    ]


def _gradients_or_none(compute: Compute, samples: Sequence[TokenRow]) -> BatchGradients | None:
    try:
        return compute(samples)
    except torch.OutOfMemoryError:
        return None  # the caller goes on after the traceback, and the tensors that it holds, are gone


def _in_halves(compute: Compute, samples: Sequence[TokenRow], *, unit_rows: bool) -> list[Outcome]:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    longest = max(len(sample.input_ids) for sample in samples)
    if len(samples) == 1:
        return [Outcome(reason="out_of_memory", detail=f"{longest} tokens do not fit into memory alone")]
    logger.warning("out of memory at %d samples of up to %d tokens: halving the batch", len(samples), longest)
    middle = len(samples) // 2
    return [
        *_computed(compute, samples[:middle], unit_rows=unit_rows),
        *_computed(compute, samples[middle:], unit_rows=unit_rows),
    ]


def _judged(gradients: BatchGradients, *, unit_rows: bool) -> list[Outcome]:
    norms = torch.linalg.vector_norm(gradients.features, dim=1)
    rows = gradients.features
    if unit_rows:
        rows = rows / norms[:, None]
    features, states = (part.to(torch.float32).cpu().numpy() for part in (rows, gradients.states))
    facts = torch.stack([t.to(torch.float64) for t in (gradients.losses, gradients.largest, norms)]).cpu()
    return [
        _judge(features[row], states[row], (loss, largest, norm))
        for row, (loss, largest, norm) in enumerate(facts.T.tolist())
    ]


def _judge(
    feature: NDArray[np.float32], state: NDArray[np.float32], facts: tuple[float, float, float]
) -> Outcome:
    loss, largest, norm = facts
    if not np.isfinite(loss):
        return Outcome(reason="non_finite_loss", detail=f"the loss is {loss}")
    if not (np.isfinite(largest) and np.isfinite(norm)):
        return Outcome(
            reason="non_finite_gradient", detail=f"largest entry {largest}, norm of the feature {norm}"
        )
    if largest == 0 or norm == 0:
        return Outcome(
            reason="zero_gradient", detail=f"the loss is {loss:.4g}, every entry of the gradient is 0"
        )
    return Outcome(feature, state)


def _is_non_finite(outcome: Outcome) -> bool:
    return outcome.reason in ("non_finite_loss", "non_finite_gradient")
