"""Per-sample gradient features of a LoRA model: bad samples set apart, batches cut where memory ends."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clusterucb_core.errors import ClusterUcbError, InvalidModel
from clusterucb_core.features.adam import AdamMoments
from clusterucb_core.features.batches import plan_batches
from clusterucb_core.features.engine import GradientEngine
from clusterucb_core.features.outcomes import batch_outcomes
from clusterucb_core.features.projections import Projection
from clusterucb_core.features.token_rows import TokenRow, unusable_reason
from clusterucb_core.records import IntArray

__all__ = [
    "AdamMoments",
    "FeatureBatch",
    "UnusableSamples",
    "check_engine",
    "gradient_features",
    "iter_gradient_features",
]

logger = logging.getLogger(__name__)

# relative error of a batched gradient against autograd, one sample at a time
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.1


class UnusableSamples(ClusterUcbError):
    """Some samples have no usable gradient; `indices` into the samples, and a reason for each."""

    def __init__(self, indices: tuple[int, ...], reasons: tuple[str, ...]) -> None:
        self.indices = indices
        self.reasons = reasons
        shown = ", ".join(f"{i}: {reason}" for i, reason in list(zip(indices, reasons, strict=True))[:5])
        more = ", ..." if len(indices) > 5 else ""
        super().__init__(
            f"{len(indices)} samples have no usable gradient ({shown}{more}); leave them out, or use "
            "iter_gradient_features, which sets them apart"
        )


@dataclass(frozen=True)
class FeatureBatch:
    """Features of one planned batch.

    `indices` [b] into the samples; `features` float32 [b, d], unit rows if projected, else [b, p];
    `excluded` holds (index, reason, detail) of the batch's unusable samples.
    """

    indices: IntArray
    features: NDArray[np.float32]
    excluded: tuple[tuple[int, str, str], ...]


def gradient_features(
    model: nn.Module,
    samples: Sequence[TokenRow],
    moments: AdamMoments | None = None,
    projection: Projection | None = None,
    max_batch_tokens: int = 4096,
) -> NDArray[np.float32]:
    """Return the gradient feature of each sample, in the order given.

    Args:
        model: a PEFT model with LoRA adapters. Its flags and training mode are left as they were.
        samples: records with `.input_ids` and `.labels` (-100 = masked).
        moments: Adam moments [p] in the order of the trainable parameters; None = plain gradients.
        projection: None = the gradient itself, float32 [n, p]; otherwise unit rows, float32 [n, d].
        max_batch_tokens: padded tokens of one batch.

    Returns:
        Features, float32 [n, p] or [n, d].

    Raises:
        UnusableSamples: samples without a supervised token, too long, or with a zero or non-finite gradient.
        InvalidModel: nothing to train, moments of another model, or token ids outside the vocabulary.
    """
    lengths = np.array([len(sample.input_ids) for sample in samples], dtype=np.int64)
    batches = plan_batches(lengths, max_batch_tokens=max_batch_tokens)
    engine = GradientEngine(model, moments, projection)
    features = np.zeros((len(samples), engine.width), dtype=np.float32)
    excluded: list[tuple[int, str, str]] = []
    for batch in _iter_batches(engine, samples, batches, unit_rows=projection is not None):
        features[batch.indices] = batch.features
        excluded.extend(batch.excluded)
    if excluded:
        excluded.sort()
        raise UnusableSamples(tuple(row[0] for row in excluded), tuple(row[1] for row in excluded))
    return features


def iter_gradient_features(
    model: nn.Module,
    samples: Sequence[TokenRow],
    batches: Sequence[IntArray],
    *,
    moments: AdamMoments | None = None,
    projection: Projection | None = None,
) -> Iterator[FeatureBatch]:
    """Yield the features of planned batches, one at a time, with unusable samples set apart.

    Args:
        model: a PEFT model with LoRA adapters. Between batches its flags and training mode are as they were.
        samples: records with `.input_ids` and `.labels`.
        batches: index arrays into the samples, for instance from `plan_batches`.
        moments: Adam moments [p]; None = plain gradients.
        projection: None = all p entries, not normalised; otherwise unit rows.

    Yields:
        One `FeatureBatch` for each planned batch, in order. Where memory runs out the batch is halved, and a
        sample that does not fit alone is excluded as `out_of_memory`.

    Raises:
        InvalidModel: nothing to train, moments of another model, or token ids outside the vocabulary.
    """
    engine = GradientEngine(model, moments, projection)
    yield from _iter_batches(engine, samples, batches, unit_rows=projection is not None)


def check_engine(model: nn.Module, samples: Sequence[TokenRow]) -> None:
    """Compare the batched gradients of two samples with plain autograd before any work starts.

    Args:
        model: the model whose gradients are about to be computed.
        samples: any samples; the first two usable ones are compared.

    Raises:
        InvalidModel: the gradients differ by more than rounding.
    """
    engine = GradientEngine(model)
    usable = [sample for sample in samples if unusable_reason(sample, engine.limits) is None][:2]
    if not usable:
        logger.warning("no usable sample among %d to check the gradient engine with", len(samples))
        return
    batched, single = engine.gradients(usable), engine.one_by_one(usable)
    error = _relative_error(batched.features, single.features)
    tolerance = _TOLERANCE.get(_coarsest_dtype(model), _LOW_PRECISION_TOLERANCE)
    if error > tolerance:
        raise InvalidModel(
            f"batched gradients differ from autograd by {error:.1e} (allowed: {tolerance:.0e}); the engine "
            "does not handle this architecture or adapter rightly, please report it"
        )


def _relative_error(features: Tensor, expected: Tensor) -> float:
    """Return the largest relative error of a row; rows that are not finite must agree in that."""
    broken = ~torch.isfinite(expected).all(dim=1)
    if not torch.equal(broken, ~torch.isfinite(features).all(dim=1)):
        return float("inf")
    difference = torch.linalg.vector_norm(features - expected, dim=1)
    scale = torch.linalg.vector_norm(expected, dim=1)
    error = torch.where(difference == 0, 0.0, difference / scale)
    return float(torch.where(broken, 0.0, error).max())


def _coarsest_dtype(model: nn.Module) -> torch.dtype:
    floating = {parameter.dtype for parameter in model.parameters() if parameter.dtype.is_floating_point}
    return max(floating, key=lambda dtype: torch.finfo(dtype).eps)


def _iter_batches(
    engine: GradientEngine, samples: Sequence[TokenRow], batches: Sequence[IntArray], *, unit_rows: bool
) -> Iterator[FeatureBatch]:
    for batch in batches:
        outcomes = batch_outcomes(engine, [samples[index] for index in batch], unit_rows=unit_rows)
        kept: list[int] = []
        rows: list[NDArray[np.float32]] = []
        excluded: list[tuple[int, str, str]] = []
        for index, outcome in zip(batch.tolist(), outcomes, strict=True):
            if outcome.feature is not None:
                kept.append(index)
                rows.append(outcome.feature)
            else:
                excluded.append((index, outcome.reason or "", outcome.detail))
        features = np.stack(rows) if rows else np.zeros((0, engine.width), dtype=np.float32)
        yield FeatureBatch(np.array(kept, dtype=np.int64), features, tuple(excluded))
