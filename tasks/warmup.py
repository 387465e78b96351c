"""The task that trains the adapter under which the first gradients are taken."""

from prefect import task

from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages import training
from clusterucb_core.stages.training import TrainingSpec
from clusterucb_core.workspace import Workspace
from tasks.caching import artifact_key
from tasks.clock import clocked


@task(cache_key_fn=artifact_key, persist_result=True, result_serializer="json", on_completion=[clocked])
def warmup(spec: TrainingSpec, workspace: Workspace, execution: ExecutionSettings) -> ArtifactRef:
    """Train on a random share of the candidates."""
    return training.run_training(spec, workspace, execution)
