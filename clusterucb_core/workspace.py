"""Where a run keeps its files, and the keys under which its stages are found again."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from pydantic import BaseModel, Field
from pydantic.config import JsonDict

from clusterucb_core.artifacts import find_artifact, fingerprint
from clusterucb_core.errors import MissingArtifact
from clusterucb_core.frozen import Frozen
from clusterucb_core.records import ArtifactRef

NOT_IN_KEY: JsonDict = {"in_key": False}
Rest = ParamSpec("Rest")


class Workspace(Frozen):
    """The state folder of a machine and the root under which artifacts lie."""

    home: str
    storage_root: str | None = None

    @property
    def catalog(self) -> Path:
        """The DuckDB file."""
        return Path(self.home) / "catalog.duckdb"

    @property
    def artifacts(self) -> Path:
        """The artifact root: `storage_root` where one is set."""
        return Path(self.storage_root) if self.storage_root else Path(self.home) / "artifacts"


class StageSpec(Frozen):
    """Everything that determines the content of one artifact.

    `stage` names the kind of artifact; `version` is raised whenever the code behind it changes its output.
    Fields declared with `location()` say where things lie or how they are run and are in no key. `key` is
    set where a stage names its artifact by a digest of its own.
    """

    stage: str
    version: int
    key: str | None = None


Spec = TypeVar("Spec", bound=StageSpec)


def location(**keywords: object) -> object:
    """Declare a field that is in no key, such as a path whose content is keyed by a digest beside it."""
    return Field(json_schema_extra={"in_key": False}, **keywords)  # pyright: ignore[reportArgumentType, reportCallIssue]


def stage_key(spec: StageSpec) -> str:
    """Return the fingerprint of a stage: its name, version and keyed fields."""
    return spec.key or fingerprint(_keyed(spec))


def finished(spec: StageSpec, workspace: Workspace) -> ArtifactRef | None:
    """Return the artifact of a stage, or None where it has not been written."""
    return find_artifact(workspace.artifacts, spec.stage, stage_key(spec))


def resumable(
    stage: Callable[Concatenate[Spec, Workspace, Rest], ArtifactRef],
) -> Callable[Concatenate[Spec, Workspace, Rest], ArtifactRef]:
    """Make a stage function return its artifact at once where an earlier run has finished it."""

    @wraps(stage)
    def unless_finished(
        spec: Spec, workspace: Workspace, *rest: Rest.args, **named: Rest.kwargs
    ) -> ArtifactRef:
        return finished(spec, workspace) or stage(spec, workspace, *rest, **named)

    return unless_finished


def written(spec: StageSpec, workspace: Workspace) -> ArtifactRef:
    """Return the artifact that a stage has just written.

    Raises:
        MissingArtifact: it is not there.
    """
    ref = finished(spec, workspace)
    if ref is None:
        raise MissingArtifact(
            f"stage {spec.stage!r} left no artifact {stage_key(spec)} under {workspace.artifacts}"
        )
    return ref


def _keyed(value: object) -> object:
    if isinstance(value, ArtifactRef):
        return [value.stage, value.fingerprint]
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: _keyed(getattr(value, name))
            for name in fields
            if fields[name].json_schema_extra != NOT_IN_KEY
        }
    if isinstance(value, tuple | list):
        return [_keyed(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {str(key): _keyed(item) for key, item in value.items()}  # pyright: ignore[reportUnknownArgumentType]
    return value
