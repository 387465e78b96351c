"""Cache keys of tasks: a stage's fingerprint, with the record dropped where the artifact is gone.

Prefect replays a stored result without looking whether the file it names is still there; so the key function
deletes the record of a missing artifact, and the task runs again under the same key.
"""

from pathlib import Path
from typing import Any

from prefect.context import TaskRunContext
from prefect.settings import get_current_settings

from clusterucb_core.artifacts import find_artifact, fingerprint
from clusterucb_core.stages.features import ShardJob
from clusterucb_core.workspace import StageSpec, Workspace, stage_key


def artifact_key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Return the cache key of a task whose parameter `spec` names its artifact."""
    spec: StageSpec = parameters["spec"]
    return _key(parameters["workspace"], spec.stage, stage_key(spec))


def shard_key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Return the cache key of a shard task, whose parameter `job` names its artifact."""
    job: ShardJob = parameters["job"]
    return _key(parameters["workspace"], f"features/{stage_key(job.space)}", job.fingerprint)


def _key(workspace: Workspace, stage: str, artifact: str) -> str:
    root = workspace.artifacts.absolute()
    key = f"{stage.replace('/', '-')}-{artifact}-{fingerprint(str(root))[:8]}"
    if find_artifact(root, stage, artifact) is None:
        (Path(get_current_settings().results.local_storage_path) / key).unlink(missing_ok=True)
    return key
