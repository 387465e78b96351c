"""Tasks that turn pool and target files into what a run may draw from."""

from prefect import task

from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages import intake, publication
from clusterucb_core.stages.intake import CandidatesSpec, IngestSpec, SharedSpec, TargetSpec, TokensSpec
from clusterucb_core.store import PoolVersion
from clusterucb_core.workspace import Workspace
from tasks.caching import artifact_key
from tasks.clock import clocked


@task(
    name="ingest pool",
    cache_key_fn=artifact_key,
    persist_result=True,
    result_serializer="json",
    on_completion=[clocked],
)
def ingest_pool(spec: IngestSpec, workspace: Workspace) -> ArtifactRef:
    """Read, validate and de-duplicate the sources."""
    return intake.run_ingest(spec, workspace)


@task(name="record pool version")
def record_pool(pool: ArtifactRef, workspace: Workspace) -> PoolVersion:
    """Record the pool in the catalog."""
    return publication.publish_pool(pool, workspace)


@task(
    name="read target",
    cache_key_fn=artifact_key,
    persist_result=True,
    result_serializer="json",
    on_completion=[clocked],
)
def read_target(spec: TargetSpec, workspace: Workspace) -> ArtifactRef:
    """Keep the target's rows."""
    return intake.run_target(spec, workspace)


@task(
    name="tokenize",
    task_run_name="tokenize {spec.split}",
    cache_key_fn=artifact_key,
    persist_result=True,
    result_serializer="json",
    on_completion=[clocked],
)
def tokenize(spec: TokensSpec, workspace: Workspace) -> ArtifactRef:
    """Render and tokenize samples."""
    return intake.run_tokens(spec, workspace)


@task(
    name="choose candidates",
    cache_key_fn=artifact_key,
    persist_result=True,
    result_serializer="json",
    on_completion=[clocked],
)
def choose_candidates(spec: CandidatesSpec, workspace: Workspace) -> ArtifactRef:
    """Leave out leaks and samples without anything to learn."""
    return intake.run_candidates(spec, workspace)


@task(
    name="share candidates",
    cache_key_fn=artifact_key,
    persist_result=True,
    result_serializer="json",
    on_completion=[clocked],
)
def share_candidates(spec: SharedSpec, workspace: Workspace) -> ArtifactRef:
    """Keep the samples that the targets share."""
    return intake.run_shared(spec, workspace)
