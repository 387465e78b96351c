"""Per-sample gradient features of a LoRA model: bad samples set apart, batches cut where memory ends.

Matrix products follow PyTorch's own settings, which nothing here changes. By default float32 products are
exact to float32; where TF32 is allowed on a GPU (`torch.backends.cuda.matmul.allow_tf32`), those of the
model and of the gradients are both rounded to it, and `check_engine` allows for that.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clusterucb_core.errors import ClusterUcbError, InvalidModel
from clusterucb_core.features.adam import AdamMoments
from clusterucb_core.features.agreement import relative_error, rounding_tolerance
from clusterucb_core.features.batches import plan_batches
from clusterucb_core.features.engine import GradientEngine
from clusterucb_core.features.outcomes import FeatureBatch, batch_outcomes, feature_batch
from clusterucb_core.features.projections import Projection
from clusterucb_core.features.token_rows import IGNORED, TokenRow, unusable_reason
from clusterucb_core.features.ways import ways_summary
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

    The two differ in length, so that padding and the cut between samples count: where no two do, one is
    shortened. Autograd runs the model's own forward, one sample at a time, without any short cut.

    Args:
        model: the model whose gradients are about to be computed.
        samples: any samples; the first usable one and the first usable of another length are compared.

    Raises:
        InvalidModel: the gradients differ by more than rounding.
    """
    engine = GradientEngine(model)
    pair = _unequal_pair([sample for sample in samples if unusable_reason(sample, engine.limits) is None])
    if not pair:
        logger.warning("no usable sample among %d to check the gradient engine with", len(samples))
        return
    batched, single = engine.gradients(pair), engine.one_by_one(pair)
    error, tolerance = relative_error(batched.features, single.features), rounding_tolerance(model)
    if error > tolerance:
        raise InvalidModel(
            f"batched gradients differ from autograd by {error:.1e} (allowed: {tolerance:.0e}); the engine "
            "does not handle this architecture or adapter rightly, please report it"
        )


@dataclass(frozen=True)
class _Tokens:
    """Tokens of a sample that was made up."""

    input_ids: IntArray
    labels: IntArray


def _unequal_pair(usable: Sequence[TokenRow]) -> list[TokenRow]:
    """Return a sample and one of another length; a single one, or none, where there is no such pair."""
    if not usable:
        return []
    first = usable[0]
    for other in usable:
        if len(other.input_ids) != len(first.input_ids):
            return [first, other]
    # to its first supervised token, and no further
    end = int(np.flatnonzero(np.asarray(first.labels)[1:] != IGNORED)[0]) + 2
    if end < len(first.input_ids):
        return [first, _Tokens(first.input_ids[:end], first.labels[:end])]
    return list(usable[:2])


def _iter_batches(
    engine: GradientEngine, samples: Sequence[TokenRow], batches: Sequence[IntArray], *, unit_rows: bool
) -> Iterator[FeatureBatch]:
    for batch in batches:
        chosen = [samples[index] for index in batch]
        outcomes = batch_outcomes(engine.gradients, chosen, limits=engine.limits, unit_rows=unit_rows)
        yield replace(feature_batch(batch, outcomes, width=engine.width), ways=ways_summary(engine.ways))
