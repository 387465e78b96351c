"""Tasks that compute gradient features, shard by shard."""

from collections.abc import Sequence

from prefect import task

from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages import features, publication
from clusterucb_core.stages.features import ShardJob
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.workspace import Workspace
from tasks.caching import shard_key
from tasks.clock import clocked


@task(name="featurize shard", cache_key_fn=shard_key, persist_result=True, result_serializer="json")
def featurize_shard(job: ShardJob, workspace: Workspace, execution: ExecutionSettings) -> ArtifactRef:
    """Compute the features of one shard."""
    return features.run_shard(job, workspace, execution)


@task(name="featurize shard on a node", persist_result=False)
def featurize_on_node(job: ShardJob, workspace: Workspace, execution: ExecutionSettings) -> ArtifactRef:
    """Compute the features of one shard on a machine that shares no folder with this one.

    Prefect would keep the result in a folder; that the shard is in the object store is record enough.
    """
    return features.run_shard(job, workspace, execution)


@task(name="record features", on_completion=[clocked])
def record_features(
    spaces: Sequence[FeatureSpace],
    candidates: ArtifactRef,
    clusterings: Sequence[ArtifactRef],
    workspace: Workspace,
) -> int:
    """Record features, exclusions and clusters in the catalog."""
    return publication.publish_features(spaces, candidates, clusterings, workspace)
