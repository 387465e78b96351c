"""Cache keys of tasks: a stage's fingerprint, with the record dropped where the artifact is gone.

Prefect replays a stored result without looking whether the file it names is still there; so the key function
deletes the record of a missing artifact, and the task runs again under the same key.
"""

from pathlib import Path
from typing import Any

from prefect.context import TaskRunContext
from prefect.settings import get_current_settings

from clusterucb_core.artifacts import artifact_exists, find_artifact, fingerprint
from clusterucb_core.stages.features import ShardJob
from clusterucb_core.workspace import StageSpec, Workspace, stage_key


def artifact_key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Return the cache key of a task whose parameter `spec` names its artifact."""
    spec: StageSpec = parameters["spec"]
    root = _root(parameters)
    present = find_artifact(root, spec.stage, stage_key(spec)) is not None  # fetched: others read it here
    return _key(root, spec.stage, stage_key(spec), present=present)


def shard_key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Return the cache key of a shard task, whose parameter `job` names its artifact."""
    job: ShardJob = parameters["job"]
    root, stage = _root(parameters), f"features/{stage_key(job.space)}"
    return _key(root, stage, job.fingerprint, present=artifact_exists(root, stage, job.fingerprint))


def _root(parameters: dict[str, Any]) -> Path:
    workspace: Workspace = parameters["workspace"]
    return workspace.artifacts.absolute()


def _key(root: Path, stage: str, artifact: str, *, present: bool) -> str:
    key = f"{stage.replace('/', '-')}-{artifact}-{fingerprint(str(root))[:8]}"
    if not present:
        (Path(get_current_settings().results.local_storage_path) / key).unlink(missing_ok=True)
    return key
