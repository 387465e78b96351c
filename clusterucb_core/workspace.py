"""Where a run keeps its files, and the keys under which its stages are found again.

Artifacts of an object store are worked on in a folder of each machine that mirrors it; a record that was made
on one machine is brought to another by fetching what it refers to.
"""

import os
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from pydantic import BaseModel, Field
from pydantic.config import JsonDict

from clusterucb_core.artifacts import find_artifact, fingerprint
from clusterucb_core.errors import InvalidConfig, MissingArtifact
from clusterucb_core.frozen import Frozen
from clusterucb_core.object_store import StorageRoot, is_address, mirror_folder, open_store, probe
from clusterucb_core.records import ArtifactRef
from clusterucb_core.storage_faults import check_writable

NOT_IN_KEY: JsonDict = {"in_key": False}
Rest = ParamSpec("Rest")


class Workspace(Frozen):
    """The state folder of a machine and the root under which artifacts lie: a folder, or an object store.

    `on_node` says that this is a machine which has an object store in common with that of the state folder,
    and no folder.
    """

    home: str
    storage_root: StorageRoot | None = None
    on_node: bool = False

    @property
    def catalog(self) -> Path:
        """The DuckDB file."""
        return Path(self.home) / "catalog.duckdb"

    @property
    def artifacts(self) -> Path:
        """The artifact root of this machine: `storage_root` where one is set, or what mirrors it here."""
        if not self.storage_root:
            return Path(self.home) / "artifacts"
        if not is_address(self.storage_root):
            return Path(self.storage_root)
        return mirror_folder(
            _node_folder() if self.on_node else Path(self.home) / "staging", self.storage_root
        )

    @property
    def is_mirrored(self) -> bool:
        """Whether artifacts lie in an object store, and here are copies."""
        return self.storage_root is not None and is_address(self.storage_root)

    @property
    def places(self) -> dict[Path, str]:
        """The folders that are written to, and what sets each; the state folder is the first."""
        # copies of an object store lie in the state folder, or in a folder for temporary files
        by_root = "CLUSTERUCB_HOME" if self.is_mirrored else "execution.storage_root"
        places = {Path(self.home): "CLUSTERUCB_HOME", self.artifacts: "TMPDIR" if self.on_node else by_root}
        return {place.absolute(): setting for place, setting in places.items()}


def check_storage(workspace: Workspace) -> None:
    """Check that the folders of a workspace can be written, and its object store, where it has one, be used.

    Raises:
        InvalidConfig: the package for its protocol is not installed.
        StorageNotWritable: a folder cannot be written.
        StorageUnavailable: the object store cannot be written and read.
    """
    for place, setting in workspace.places.items():
        check_writable(place, setting)
    if workspace.storage_root is not None and workspace.is_mirrored:
        probe(open_store(workspace.storage_root))


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
Record = TypeVar("Record", bound=BaseModel)


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


def brought(record: Record, workspace: Workspace) -> Record:
    """Return a record whose artifacts lie on this machine; those that do not are fetched.

    Args:
        record: made where the run was started.
        workspace: of this machine. Unless it is a node, the paths in the record are valid here as they are.

    Raises:
        MissingArtifact: the object store does not hold an artifact.
        InvalidConfig: this machine's folder for copies belongs to another user.
    """
    if not workspace.on_node:
        return record
    _make_private(workspace.artifacts.parent)
    return _brought(record, workspace)


def _brought(value: Any, workspace: Workspace) -> Any:
    if isinstance(value, ArtifactRef):
        found = find_artifact(workspace.artifacts, value.stage, value.fingerprint)
        if found is None:
            raise MissingArtifact(
                f"{workspace.storage_root} holds no artifact {value.stage}/{value.fingerprint}; if it was "
                f"removed there, remove {value.path} where the run was started, too, and run again"
            )
        return found
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return value.model_copy(update={name: _brought(getattr(value, name), workspace) for name in fields})
    if isinstance(value, tuple | list):
        return type(value)(_brought(item, workspace) for item in value)  # pyright: ignore
    if isinstance(value, dict):
        return {key: _brought(item, workspace) for key, item in value.items()}
    return value


def _node_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"clusterucb-{os.getuid()}"


def _make_private(folder: Path) -> None:
    """Make a folder that nobody else can read or write: copies of the pool's texts will lie in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise InvalidConfig(
            f"{folder} belongs to another user or leads elsewhere; start this node with another TMPDIR"
        )


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
