"""The task that clusters the pool."""

from prefect import task

from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages import clusters
from clusterucb_core.stages.clusters import ClusterSpec
from clusterucb_core.workspace import Workspace
from tasks.caching import artifact_key
from tasks.clock import clocked


@task(
    name="cluster pool",
    cache_key_fn=artifact_key,
    persist_result=True,
    result_serializer="json",
    on_completion=[clocked],
)
def cluster_pool(spec: ClusterSpec, workspace: Workspace) -> ArtifactRef:
    """Cluster the candidates by the direction of their features."""
    return clusters.run_clustering(spec, workspace)
