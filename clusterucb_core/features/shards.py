"""Shards of gradient features: planned once for a request, written whole, never twice.

Files written: `<artifact root>/features/<feature space>/<shard>/features.npy` and its manifest. Row i of the
file belongs to sample i of the shard; the rows of excluded samples stay zero and are never read. The forward
pass of a gradient gives hidden states as well: asked for, they make a shard of a space of their own.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clusterucb_core.artifacts import find_artifact, fingerprint, new_artifact
from clusterucb_core.errors import InvalidConfig
from clusterucb_core.features.batches import plan_batches
from clusterucb_core.features.gradients import AdamMoments, FeatureBatch, iter_gradient_features
from clusterucb_core.features.losses import hidden_width
from clusterucb_core.features.projections import Projection
from clusterucb_core.features.sinks import trainable_parameters
from clusterucb_core.mapped_arrays import new_mapped_array
from clusterucb_core.pacing import Pace, advance
from clusterucb_core.records import ArtifactRef, IntArray, TokenizedSample

logger = logging.getLogger(__name__)

FEATURES_FILE = "features.npy"


@dataclass(frozen=True)
class Shard:
    """Samples computed and stored together; `batches` holds positions in `sample_ids`."""

    fingerprint: str
    sample_ids: tuple[str, ...]
    batches: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class RowSource:
    """What computes a shard: `rows` yields those of planned batches of `samples`.

    Each is `width()` long, and comes with a mean final hidden state of `hidden()` entries.
    """

    samples: Sequence[TokenizedSample]
    width: Callable[[], int]
    hidden: Callable[[], int]
    rows: Callable[[Sequence[TokenizedSample], Sequence[IntArray]], Iterable[FeatureBatch]]


def shard_stage(feature_space: str) -> str:
    """Return the artifact stage that holds the shards of a feature space."""
    return f"features/{feature_space}"


def shard_fingerprint(feature_space: str, sample_ids: Sequence[str]) -> str:
    """Return the name of the shard that holds these samples in this order."""
    return fingerprint("features", feature_space, list(sample_ids))


def plan_shards(
    feature_space: str,
    sample_ids: Sequence[str],
    lengths: IntArray,
    *,
    shard_samples: int,
    max_batch_tokens: int,
) -> list[Shard]:
    """Divide a request into batches, and the batches into shards.

    Batches are planned over the whole request, so neither the number of shards nor the order of the request
    changes a batch, and therefore no byte of a feature. To resume, plan the same request again: what is
    finished is not computed twice.

    Args:
        feature_space: fingerprint of everything that determines a feature.
        sample_ids: the samples asked for; a repeated id counts once.
        lengths: tokens of each, integers [n].
        shard_samples: about how many samples a shard gets; a batch is never divided.
        max_batch_tokens: padded tokens of one batch.

    Returns:
        Shards that cover the request once, short samples first.

    Raises:
        InvalidConfig: `shard_samples` or `max_batch_tokens` is below 1.
    """
    if shard_samples < 1:
        raise InvalidConfig(f"shard_samples={shard_samples} holds no sample; set it to 1 or more")
    length_of = dict(zip(sample_ids, np.asarray(lengths).tolist(), strict=True))
    ordered = sorted(length_of, key=lambda sample_id: (length_of[sample_id], sample_id))
    sorted_lengths = np.array([length_of[sample_id] for sample_id in ordered], dtype=np.int64)
    batches = [
        [ordered[index] for index in batch]
        for batch in plan_batches(sorted_lengths, max_batch_tokens=max_batch_tokens)
    ]
    groups: list[list[list[str]]] = []
    filled = shard_samples
    for batch in batches:
        if filled + len(batch) > shard_samples or not groups:
            groups.append([])
            filled = 0
        groups[-1].append(batch)
        filled += len(batch)
    return [_shard(feature_space, group) for group in groups]


def remaining_shard(feature_space: str, shard: Shard, missing: Collection[str]) -> Shard | None:
    """Return the part of a shard that is missing, in the same batches, or None where nothing is.

    Args:
        feature_space: fingerprint of everything that determines a feature.
        shard: from `plan_shards`.
        missing: ids that have no feature yet.
    """
    groups = [[shard.sample_ids[index] for index in batch] for batch in shard.batches]
    kept = [part for group in groups if (part := [sample_id for sample_id in group if sample_id in missing])]
    return _shard(feature_space, kept) if kept else None


def _shard(feature_space: str, batches: Sequence[Sequence[str]]) -> Shard:
    starts = np.cumsum([0, *(len(batch) for batch in batches)]).tolist()
    sample_ids = tuple(sample_id for batch in batches for sample_id in batch)
    return Shard(
        fingerprint=shard_fingerprint(feature_space, sample_ids),
        sample_ids=sample_ids,
        batches=tuple(tuple(range(start, stop)) for start, stop in pairwise(starts)),
    )


def write_shard(
    artifact_root: Path,
    feature_space: str,
    shard: Shard,
    model: nn.Module,
    samples: Sequence[TokenizedSample],
    *,
    moments: AdamMoments | None,
    projection: Projection | None,
    states_space: str | None = None,
    provenance: Mapping[str, str] | None = None,
) -> ArtifactRef:
    """Compute and store the features of one shard; return at once where they are there already.

    Args:
        artifact_root: folder of all artifacts.
        feature_space: fingerprint of everything that determines a feature.
        shard: from `plan_shards`.
        model: a PEFT model with LoRA adapters; run `check_engine` on it once before.
        samples: the tokenised samples, in the order of `shard.sample_ids`.
        moments: Adam moments [p], or None for plain gradients.
        projection: None stores all p entries; rows have unit length either way.
        states_space: fingerprint of the space that keeps the mean final hidden states; None drops them.
        provenance: kept in the manifest, for instance the run that paid for the shard.

    Returns:
        The reference of the shard's artifact; its manifest lists excluded samples and says, as
        `gradient_ways`, how many parameters had their gradients by hooks, replays or one by one.

    Raises:
        ValueError: the samples are not those of the shard.
        InvalidModel: nothing to train, moments of another model, or token ids outside the vocabulary.
    """
    source = RowSource(
        samples=samples,
        width=partial(_gradient_width, model, projection),
        hidden=partial(hidden_width, model),
        rows=partial(iter_gradient_features, model, moments=moments, projection=projection),
    )
    return write_rows(
        artifact_root, feature_space, shard, source=source, states_space=states_space, provenance=provenance
    )


def write_rows(
    artifact_root: Path,
    feature_space: str,
    shard: Shard,
    *,
    source: RowSource,
    states_space: str | None = None,
    provenance: Mapping[str, str] | None = None,
) -> ArtifactRef:
    """Compute and store the rows of one shard, scaled to unit length; return at once where they are there.

    Args:
        artifact_root: folder of all artifacts.
        feature_space: fingerprint of everything that determines a feature.
        shard: from `plan_shards`.
        source: what computes the rows; its samples are in the order of `shard.sample_ids`.
        states_space: as in `write_shard`.
        provenance: kept in the manifest, for instance the run that paid for the shard.

    Raises:
        ValueError: the samples are not those of the shard.
    """
    stage = shard_stage(feature_space)
    if tuple(sample.sample_id for sample in source.samples) != shard.sample_ids:
        raise ValueError(
            f"the {len(source.samples)} samples are not those of shard {shard.fingerprint}, in its order"
        )
    finished = find_artifact(artifact_root, stage, shard.fingerprint)
    if finished is not None:
        return finished
    manifest: dict[str, Any] = {
        "feature_space": feature_space,
        "sample_ids": list(shard.sample_ids),
        "provenance": dict(provenance or {}),
    }
    batches = [np.array(batch, dtype=np.int64) for batch in shard.batches]
    with new_artifact(artifact_root, stage, shard.fingerprint, manifest) as folder:
        shape = (len(shard.sample_ids), source.width())
        rows = new_mapped_array(folder / FEATURES_FILE, np.float16, shape)
        states = None if states_space is None else np.zeros((shape[0], source.hidden()), dtype=np.float16)
        stream = source.rows(source.samples, batches)
        manifest["excluded"], manifest["gradient_ways"] = _fill(rows, states, stream, shard)
        manifest["dim"] = rows.shape[1]
        if states_space is not None and states is not None:
            # before the gradients bear their name: a run that is killed in between computes both again
            _write_states(artifact_root, states_space, shard, states, gradients=manifest)
    return ArtifactRef(
        stage=stage, fingerprint=shard.fingerprint, path=str(artifact_root / stage / shard.fingerprint)
    )


def _write_states(
    artifact_root: Path,
    states_space: str,
    shard: Shard,
    states: NDArray[np.float16],
    *,
    gradients: Mapping[str, Any],
) -> None:
    """Write the states of a shard's samples, a shard of a space of their own with the same exclusions."""
    stage, name = shard_stage(states_space), shard_fingerprint(states_space, shard.sample_ids)
    if find_artifact(artifact_root, stage, name) is not None:
        return
    manifest: dict[str, Any] = {
        "feature_space": states_space,
        "sample_ids": gradients["sample_ids"],
        "provenance": gradients["provenance"],
        "excluded": gradients["excluded"],
        "gradient_ways": {},
        "dim": states.shape[1],
    }
    with new_artifact(artifact_root, stage, name, manifest) as folder:
        np.save(folder / FEATURES_FILE, states)


def _gradient_width(model: nn.Module, projection: Projection | None) -> int:
    sizes = (parameter.numel() for parameter in trainable_parameters(model).values())
    return sum(sizes) if projection is None else projection.dim


def _fill(
    rows: "np.memmap[Any, Any]",
    states: NDArray[np.float16] | None,
    stream: Iterable[FeatureBatch],
    shard: Shard,
) -> tuple[list[tuple[str, str, str]], Mapping[str, Any]]:
    """Write the rows batch by batch; return (sample id, reason, detail) of what is excluded, and the ways."""
    excluded: list[tuple[str, str, str]] = []
    ways: Mapping[str, Any] = {}
    pace = Pace(logger, f"shard {shard.fingerprint[:8]}", "samples", len(shard.sample_ids))
    for batch in stream:
        # gradients without projection come with their own length, and 16 bits have no room for it
        rows[batch.indices] = _unit(batch.features)
        if states is not None and len(batch.indices):
            states[batch.indices] = _unit(batch.states)
        excluded.extend((shard.sample_ids[i], reason, detail) for i, reason, detail in batch.excluded)
        ways = batch.ways
        advance(pace, len(batch.indices) + len(batch.excluded))
    rows.flush()
    _log_rate(shard, len(excluded), time.monotonic() - pace.began_at)
    return excluded, ways


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _log_rate(shard: Shard, excluded: int, seconds: float) -> None:
    logger.info(
        "shard %s: %d features, %d excluded, %.1f samples/s",
        shard.fingerprint[:8],
        len(shard.sample_ids) - excluded,
        excluded,
        len(shard.sample_ids) / max(seconds, 1e-9),
    )
