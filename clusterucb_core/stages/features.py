"""Features of pool and target samples at one checkpoint, shard by shard: gradients, or forward-only ones.

Reads the artifacts `tokens` and `training`; writes feature shards below `features/<space>/`.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peft import PeftModel
from pydantic import Field

from clusterucb_core.artifacts import artifact_folder
from clusterucb_core.errors import MissingArtifact, TooManyExcluded
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.features.gradients import AdamMoments, check_engine
from clusterucb_core.features.projections import Projection, ProjectionName, resolve_projection
from clusterucb_core.features.shards import shard_fingerprint, shard_stage
from clusterucb_core.features.store import (
    FeatureStore,
    Shard,
    open_feature_store,
    plan_shards,
    remaining_shard,
    write_shard,
)
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.checkpoints import read_moments
from clusterucb_core.lm.devices import leased_device
from clusterucb_core.lm.lora import load_adapter, replace_adapter, resolve_device
from clusterucb_core.lm.token_budget import batch_tokens
from clusterucb_core.lm.tokens import TokenTable, open_tokens
from clusterucb_core.records import ArtifactRef, Exclusion, FloatArray
from clusterucb_core.stages.forward import compute_forward_shard
from clusterucb_core.stages.models import CheckpointRef, FeatureSpace, ModelRef, checkpoint_folder
from clusterucb_core.storage_faults import check_room
from clusterucb_core.workspace import Workspace, brought, stage_key


class FeatureSettings(Frozen):
    """How gradients are projected, and how many samples may fail."""

    projection: ProjectionName = Field(
        default="auto",
        title="Projection",
        description="auto: none for small adapters, else the roll sketch.",
    )
    projection_dim: int = Field(
        default=8192, ge=1, title="Dimensions", description="Dimensions of a projected feature."
    )
    max_excluded_fraction: float = Field(
        default=0.01,
        ge=0,
        le=1,
        title="Largest excluded share",
        description="The stage fails where a larger share of samples has no usable gradient.",
    )


@dataclass(frozen=True)
class GradientSource:
    """A loaded model at one checkpoint, with the optimiser state and the tokens that features come from."""

    space: FeatureSpace
    model: PeftModel
    moments: AdamMoments | None
    table: TokenTable


class ShardJob(Frozen):
    """One shard of features to compute: its samples in whole batches.

    Where gradients are computed, `states` is the space that keeps the hidden states of their forward pass.
    """

    space: FeatureSpace
    states: FeatureSpace | None = None
    tokens: ArtifactRef
    run_id: str
    fingerprint: str
    sample_ids: tuple[str, ...]
    batches: tuple[tuple[int, ...], ...]


def feature_space(
    model: ModelRef, checkpoint: CheckpointRef, settings: FeatureSettings, *, plain: bool, seed: int
) -> FeatureSpace:
    """Return the space of a checkpoint's features: Adam's for the pool, plain ones for a target."""
    return FeatureSpace(
        model=model,
        checkpoint=checkpoint,
        kind="plain" if plain else "adam",
        projection=settings.projection,
        projection_dim=settings.projection_dim,
        seed=seed,
    )


def open_store(space: FeatureSpace, workspace: Workspace) -> FeatureStore:
    """Return the index of everything computed in a feature space."""
    return open_feature_store(workspace.artifacts, stage_key(space))


def plan_jobs(
    space: FeatureSpace,
    tokens: ArtifactRef,
    sample_ids: Sequence[str],
    *,
    workspace: Workspace,
    execution: ExecutionSettings,
    run_id: str,
    states: FeatureSpace | None = None,
) -> list[ShardJob]:
    """Return the shard jobs for the samples that a feature space does not hold yet.

    Batches are planned over all samples asked for, so that a run that was killed goes on with the same ones.

    Raises:
        StorageFull: the disk has no room for what they will write.
    """
    missing = set(open_store(space, workspace).missing(sample_ids))
    if not missing:
        return []
    key = stage_key(space)
    shards = plan_shards_of(space, open_tokens(tokens), sample_ids, execution)
    wanted = [part for shard in shards if (part := remaining_shard(key, shard, missing)) is not None]
    _check_room(space, len(missing), workspace)
    return [
        ShardJob(
            space=space,
            states=states,
            tokens=tokens,
            run_id=run_id,
            fingerprint=shard.fingerprint,
            sample_ids=shard.sample_ids,
            batches=shard.batches,
        )
        for shard in wanted
    ]


def _check_room(space: FeatureSpace, n_samples: int, workspace: Workspace) -> None:
    """Refuse gradients that this machine's disk has no room for, before the first is computed."""
    if not space.has_gradients or workspace.is_mirrored:
        return
    projection = projection_of(space)
    dim = space.model.n_lora_parameters if projection is None else space.projection_dim
    check_room(
        workspace.artifacts,
        n_samples * dim * np.dtype(np.float16).itemsize,
        what=f"the gradient features of {n_samples:,} samples",
        setting="execution.storage_root",
    )


def plan_shards_of(
    space: FeatureSpace, table: TokenTable, sample_ids: Sequence[str], execution: ExecutionSettings
) -> list[Shard]:
    """Return shards that cover the samples, whether they are in the store or not."""
    rows = table.rows
    return plan_shards(
        stage_key(space),
        sample_ids,
        table.lengths[np.array([rows[sample] for sample in sample_ids], dtype=np.int64)],
        shard_samples=execution.shard_samples,
        max_batch_tokens=batch_tokens(
            execution.max_batch_tokens,
            space.model.settings,
            n_parameters=space.model.n_parameters,
            device=resolve_device(execution.device),
        ),
    )


def run_shard(job: ShardJob, workspace: Workspace, execution: ExecutionSettings) -> ArtifactRef:
    """Compute one shard of features.

    On a node, what the shard needs is fetched, and stays for the next one; the shard itself is put into the
    object store, and not kept.
    """
    ref = _run_here(brought(job, workspace), workspace, execution)
    if workspace.on_node:
        _forget_copies(job, workspace)
    return ref


def _run_here(job: ShardJob, workspace: Workspace, execution: ExecutionSettings) -> ArtifactRef:
    shard = Shard(job.fingerprint, job.sample_ids, job.batches)
    with leased_device(execution.device) as device:
        table = open_tokens(job.tokens)
        if not job.space.has_gradients:
            return compute_forward_shard(
                job.space, shard, table, workspace=workspace, device=device, run_id=job.run_id
            )
        source = load_source(job.space, table, device)
        return compute_shard(source, shard, workspace, run_id=job.run_id, states=job.states)


def _forget_copies(job: ShardJob, workspace: Workspace) -> None:
    names = [(stage_key(job.space), job.fingerprint)]
    if job.states is not None:
        states = stage_key(job.states)
        names.append((states, shard_fingerprint(states, job.sample_ids)))
    for space, name in names:
        shutil.rmtree(artifact_folder(workspace.artifacts, shard_stage(space), name), ignore_errors=True)


def load_source(space: FeatureSpace, table: TokenTable, device: str) -> GradientSource:
    """Load the model of a feature space with its checkpoint's adapter and optimiser state.

    Raises:
        InvalidModel: the engine's gradients of the first two samples are not those of plain autograd.
    """
    model = load_adapter(space.model.settings, _folder(space), device)
    check_engine(model, table.take(table.sample_ids[:2]))
    return GradientSource(space, model, checkpoint_moments(space, model), table)


def switch_source(source: GradientSource, space: FeatureSpace) -> GradientSource:
    """Return a source whose loaded model has been given another checkpoint's adapter."""
    if space == source.space:
        return source
    replace_adapter(source.model, space.model.settings, _folder(space))
    return GradientSource(space, source.model, checkpoint_moments(space, source.model), source.table)


def compute_shard(
    source: GradientSource,
    shard: Shard,
    workspace: Workspace,
    *,
    run_id: str,
    states: FeatureSpace | None = None,
) -> ArtifactRef:
    """Compute one shard with a loaded model; its manifest names the run that paid for it.

    Args:
        source: the loaded model.
        shard: the samples.
        workspace: where features lie.
        run_id: the run that pays.
        states: the space that keeps the hidden states of the forward pass; None drops them.
    """
    return write_shard(
        workspace.artifacts,
        stage_key(source.space),
        shard,
        source.model,
        source.table.take(shard.sample_ids),
        moments=source.moments,
        projection=projection_of(source.space),
        states_space=None if states is None else stage_key(states),
        provenance={"run_id": run_id},
    )


def _folder(space: FeatureSpace) -> Path:
    assert space.checkpoint is not None, "gradients are those of a checkpoint"
    return checkpoint_folder(space.checkpoint)


def checkpoint_moments(space: FeatureSpace, model: PeftModel) -> AdamMoments | None:
    """Return the optimiser state of a checkpoint, or None for plain gradients."""
    if space.kind == "plain":
        return None
    return AdamMoments(*read_moments(_folder(space), model))


def projection_of(space: FeatureSpace) -> Projection | None:
    """Return the projection of a feature space."""
    return resolve_projection(
        space.projection,
        dim=space.projection_dim,
        n_parameters=space.model.n_lora_parameters,
        seed=space.seed,
    )


def usable_samples(
    space: FeatureSpace, sample_ids: Sequence[str], *, workspace: Workspace, max_excluded_fraction: float
) -> tuple[list[str], tuple[Exclusion, ...]]:
    """Return the samples that have a feature, and the exclusions of those that have none.

    Raises:
        TooManyExcluded: the excluded share is above the limit; the message counts the reasons.
        MissingArtifact: a sample has neither a feature nor an exclusion.
    """
    store = open_store(space, workspace)
    excluded = tuple(store.excluded[sample] for sample in sample_ids if sample in store.excluded)
    if len(excluded) > max_excluded_fraction * len(sample_ids):
        what = "gradient" if space.has_gradients else "feature"
        reasons = [exclusion.reason for exclusion in excluded]
        counts = ", ".join(f"{reason}: {reasons.count(reason)}" for reason in sorted(set(reasons)))
        raise TooManyExcluded(
            f"{len(excluded)} of {len(sample_ids)} samples have no usable {what} ({counts}), above "
            f"features.max_excluded_fraction={max_excluded_fraction}; mend the pool or raise the limit"
        )
    if missing := store.missing(sample_ids):
        raise MissingArtifact(
            f"{len(missing)} of {len(sample_ids)} samples have no feature, the first {missing[0]}; run the "
            "pipeline again to compute them"
        )
    out = {exclusion.sample_id for exclusion in excluded}
    return [sample for sample in sample_ids if sample not in out], excluded


def read_features(space: FeatureSpace, sample_ids: Sequence[str], workspace: Workspace) -> FloatArray:
    """Return the features of samples as float32 unit rows [n, d]."""
    return open_store(space, workspace).read(sample_ids)
