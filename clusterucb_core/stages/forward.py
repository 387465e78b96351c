"""Forward-only features of pool and target samples, shard by shard: no gradient is computed.

Reads the artifacts `tokens` and `training`; writes feature shards below `features/<space>/`.
"""

from typing import cast

from torch import nn

from clusterucb_core.features.forward import OUTER_WIDTH, head_features, state_features
from clusterucb_core.features.store import RowSource, Shard, write_rows
from clusterucb_core.lm.loading import load_base
from clusterucb_core.lm.lora import load_adapter
from clusterucb_core.lm.tokens import TokenTable
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.models import CheckpointRef, FeatureSpace, ModelRef, checkpoint_folder
from clusterucb_core.workspace import Workspace, stage_key


def head_space(model: ModelRef, checkpoint: CheckpointRef | None, *, seed: int) -> FeatureSpace:
    """Return the space of the output head's features at a checkpoint, or of the base model without one."""
    return FeatureSpace(
        model=model,
        checkpoint=checkpoint,
        kind="forward",
        projection="roll",
        projection_dim=OUTER_WIDTH,
        seed=seed,
    )


def states_space(model: ModelRef, checkpoint: CheckpointRef | None) -> FeatureSpace:
    """Return the space of mean final hidden states at a checkpoint, or of the base model without one."""
    return FeatureSpace(
        model=model,
        checkpoint=checkpoint,
        kind="states",
        projection="none",
        projection_dim=0,
        seed=0,
    )


def compute_forward_shard(
    space: FeatureSpace, shard: Shard, table: TokenTable, *, workspace: Workspace, device: str, run_id: str
) -> ArtifactRef:
    """Compute one shard of forward-only features; its manifest names the run that paid for it."""
    model = _load(space, device)
    if space.kind == "states":
        features = state_features(model)
    else:
        features = head_features(model, width=space.projection_dim, seed=space.seed)
    return write_rows(
        workspace.artifacts,
        stage_key(space),
        shard,
        source=RowSource(
            samples=table.take(shard.sample_ids),
            width=lambda: features.width,
            hidden=lambda: features.hidden,
            rows=features.iterate,
        ),
        provenance={"run_id": run_id},
    )


def _load(space: FeatureSpace, device: str) -> nn.Module:
    settings = space.model.settings
    if space.checkpoint is None:
        return cast("nn.Module", load_base(settings, device))
    return load_adapter(settings, checkpoint_folder(space.checkpoint), device)
