"""Content-addressed artifact folders `<root>/<stage>/<fingerprint>/`, written whole or not at all.

A stage writes into a temporary sibling folder; the manifest is written last and the folder renamed, so a
folder that bears its final name is complete. Files read and written: those of the artifact root only, and,
where it mirrors an object store, the objects there: an artifact is stored before it gets its name, and is
fetched where it is looked for and only the store has it.
"""

import hashlib
import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from clusterucb_core.drafts import damaged_name, held_draft
from clusterucb_core.errors import MissingArtifact, StaleArtifact
from clusterucb_core.object_store import (
    get_artifact,
    has_artifact,
    list_below,
    put_artifact,
    remove_artifact,
    store_of,
)
from clusterucb_core.records import ArtifactRef

MANIFEST = "manifest.json"


def fingerprint(*parts: object) -> str:
    """Return 32 hex digits that name the given values.

    Args:
        parts: JSON values, pydantic models, or lists and dictionaries of them. The order of dictionary keys
            does not matter, the order of lists does.

    Raises:
        TypeError: a value has no stable JSON form.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex, read in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def artifact_folder(root: Path, stage: str, key: str) -> Path:
    """Return the folder that an artifact has or would have."""
    return root / stage / key


def find_artifact(root: Path, stage: str, key: str) -> ArtifactRef | None:
    """Return the reference of a finished artifact, or None where it has not been written.

    Where only the object store of the root has it, it is fetched.

    Raises:
        StaleArtifact: what the object store holds is not what was written.
        StorageUnavailable: the object store could not be read.
    """
    folder = artifact_folder(root, stage, key)
    if not (folder / MANIFEST).is_file() and not _fetched(root, stage, key):
        return None
    return ArtifactRef(stage=stage, fingerprint=key, path=str(folder))


def artifact_exists(root: Path, stage: str, key: str) -> bool:
    """Return whether an artifact is finished, here or in the object store; nothing is fetched."""
    if (artifact_folder(root, stage, key) / MANIFEST).is_file():
        return True
    store = store_of(root)
    return store is not None and has_artifact(store, f"{stage}/{key}")


def artifact_keys(root: Path, stage: str) -> list[str]:
    """Return the keys that artifacts of a stage have here or in the object store, finished or not; sorted."""
    folder, store = root / stage, store_of(root)
    here = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    stored = [] if store is None else list_below(store, stage)
    return sorted({name for name in (*here, *stored) if not name.startswith(".")})


def still_there(ref: ArtifactRef) -> bool:
    """Return whether an artifact is where it was written; one that only the object store has is fetched."""
    root = Path(ref.path).parents[len(Path(ref.stage).parts)]
    return find_artifact(root, ref.stage, ref.fingerprint) is not None


def discard_artifact(root: Path, stage: str, key: str) -> None:
    """Remove an artifact, finished or not, here and in the object store, where it is there."""
    if (store := store_of(root)) is not None:
        remove_artifact(store, f"{stage}/{key}")
    if (folder := artifact_folder(root, stage, key)).is_dir():
        shutil.rmtree(folder)


@contextmanager
def new_artifact(
    root: Path, stage: str, key: str, manifest: dict[str, Any], *, keep: str | None = None
) -> Generator[Path]:
    """Give a temporary folder to fill; on leaving without an error it becomes the artifact.

    Args:
        root: the artifact root.
        stage: name of the stage.
        key: the artifact's fingerprint.
        manifest: JSON values to keep beside the content; the block may add to it before it ends.
        keep: pattern of the names of what a killed process has finished of this artifact and the block goes
            on from; it must be there whole or not at all.

    Yields:
        The folder to write into. After an error it is removed.

    Raises:
        StorageUnavailable: the object store of the root did not take the artifact.
    """
    with held_draft(artifact_folder(root, stage, key), keep=keep) as draft:
        yield draft
        text = json.dumps(manifest, indent=1, sort_keys=True, default=_plain)
        (draft / MANIFEST).write_text(text, encoding="utf-8")
        # before it gets its name: what is found here is there for other machines, too
        if (store := store_of(root)) is not None:
            put_artifact(store, f"{stage}/{key}", draft)
        _publish(draft, artifact_folder(root, stage, key))


def read_manifest(ref: ArtifactRef) -> dict[str, Any]:
    """Return the manifest of an artifact.

    Raises:
        MissingArtifact: the folder or its manifest is gone.
        StaleArtifact: the manifest is not a JSON object.
    """
    path = Path(ref.path) / MANIFEST
    if not path.is_file():
        raise MissingArtifact(f"{path} is missing; run the pipeline again to rebuild the stage {ref.stage!r}")
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise StaleArtifact(f"{path} holds no JSON object; delete the folder and run the pipeline again")
    return content


def _fetched(root: Path, stage: str, key: str) -> bool:
    """Fetch an artifact from the object store of a root; return whether there is one that has it."""
    store = store_of(root)
    if store is None or not has_artifact(store, f"{stage}/{key}"):
        return False
    with held_draft(artifact_folder(root, stage, key)) as draft:
        if found := get_artifact(store, f"{stage}/{key}", draft):
            _publish(draft, artifact_folder(root, stage, key))
        return found


def _publish(draft: Path, final: Path) -> None:
    try:
        draft.replace(final)
    except OSError:
        if (final / MANIFEST).is_file():
            return  # another worker finished the same content first
        if not final.exists():
            raise
        # a folder without a manifest is a damaged artifact: it is moved out of the way whole
        shutil.move(final, damaged_name(draft))
        draft.replace(final)
        shutil.rmtree(damaged_name(draft), ignore_errors=True)


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no stable JSON form; convert it before taking a fingerprint")
