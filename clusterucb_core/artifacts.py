"""Content-addressed artifact folders `<root>/<stage>/<fingerprint>/`, written whole or not at all.

A stage writes into a temporary sibling folder; the manifest is written last and the folder renamed, so a
folder that bears its final name is complete. The manifest holds the digests of the files and its own, and
they are compared before anything is used: what is damaged, or lies under the name of another artifact, is
removed where it will be computed again, and refused elsewhere. Files read and written: those of the artifact
root only, and, where it mirrors an object store, the objects there: an artifact is stored before it gets its
name, and is fetched where it is looked for and only the store has it.
"""

import hashlib
import json
import logging
import shutil
import uuid
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
from clusterucb_core.seals import (
    MANIFEST,
    Seal,
    check_files,
    digest_files,
    file_digest,
    read_sealed,
    sealed_text,
)

__all__ = [
    "MANIFEST",
    "artifact_exists",
    "artifact_file",
    "artifact_folder",
    "artifact_keys",
    "discard_artifact",
    "file_digest",
    "find_artifact",
    "fingerprint",
    "new_artifact",
    "open_artifact",
    "read_artifact",
    "read_manifest",
    "still_there",
]

logger = logging.getLogger(__name__)


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


def artifact_folder(root: Path, stage: str, key: str) -> Path:
    """Return the folder that an artifact has or would have."""
    return root / stage / key


def find_artifact(root: Path, stage: str, key: str) -> ArtifactRef | None:
    """Return the reference of a finished artifact, or None where it is to be computed.

    Every file is compared with its digest, once in a process as long as it stays as it is. What is damaged
    here is removed with a warning; where only the object store of the root has the artifact, it is fetched.

    Raises:
        StaleArtifact: it is damaged and cannot be removed, or what the object store holds is not what was
            written.
        StorageUnavailable: the object store could not be read.
    """
    folder = artifact_folder(root, stage, key)
    if not _is_sound(folder, stage, key) and not _fetched(root, stage, key):
        return None
    return ArtifactRef(stage=stage, fingerprint=key, path=str(folder))


def artifact_exists(root: Path, stage: str, key: str) -> bool:
    """Return whether an artifact was finished, here or in the object store.

    Nothing is fetched and no file is read: that it is still what was written, `find_artifact` tells.
    """
    if (artifact_folder(root, stage, key) / MANIFEST).is_file():
        return True
    store = store_of(root)
    return store is not None and has_artifact(store, f"{stage}/{key}")


def open_artifact(ref: ArtifactRef, *parts: str) -> Path:
    """Return the folder of an artifact once what will be read of it was compared with its digests.

    Args:
        ref: the artifact.
        parts: the files or folders of it that will be read; none means all.

    Raises:
        MissingArtifact: the folder or its manifest is gone.
        StaleArtifact: a file is not what was written, or the folder is that of another artifact.
    """
    return _opened(ref, parts)[0]


def read_artifact(ref: ArtifactRef) -> tuple[Path, dict[str, Any]]:
    """Return the folder of an artifact, all of which is what was written, and its manifest without the seal.

    Raises:
        MissingArtifact: the folder or its manifest is gone.
        StaleArtifact: a file is not what was written, or the folder is that of another artifact.
    """
    return _opened(ref, ())


def artifact_file(ref: ArtifactRef, name: str) -> Path:
    """Return the path of one file of an artifact, which is what was written; raises as `open_artifact`."""
    return open_artifact(ref, name) / name


def artifact_keys(root: Path, stage: str) -> list[str]:
    """Return the keys that artifacts of a stage have here or in the object store, finished or not; sorted."""
    folder, store = root / stage, store_of(root)
    here = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    stored = [] if store is None else list_below(store, stage)
    return sorted({name for name in (*here, *stored) if not name.startswith(".")})


def still_there(ref: ArtifactRef) -> bool:
    """Return whether an artifact is where it was written; one that the object store has is fetched.

    Raises:
        StaleArtifact: it is there, but damaged. It is left as it is: nobody is about to compute it again.
    """
    root = Path(ref.path).parents[len(Path(ref.stage).parts)]
    store = store_of(root)
    if store is not None and has_artifact(store, f"{ref.stage}/{ref.fingerprint}"):
        return find_artifact(root, ref.stage, ref.fingerprint) is not None
    if not (Path(ref.path) / MANIFEST).is_file():
        return False
    open_artifact(ref)
    return True


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
        manifest: JSON values to keep beside the content; the block may add to it before it ends. They are
            kept with the seal: the digests of all files that the block has written.
        keep: pattern of the names of what a killed process has finished of this artifact and the block goes
            on from; it must be there whole or not at all.

    Yields:
        The folder to write into. After an error it is removed.

    Raises:
        StorageUnavailable: the object store of the root did not take the artifact.
    """
    with held_draft(artifact_folder(root, stage, key), keep=keep) as draft:
        yield draft
        content = json.loads(json.dumps(manifest, sort_keys=True, default=_plain))
        seal = Seal(stage=stage, fingerprint=key, files=digest_files(draft))
        (draft / MANIFEST).write_text(sealed_text(content, seal), encoding="utf-8")
        # before it gets its name: what is found here is there for other machines, too
        if (store := store_of(root)) is not None:
            put_artifact(store, f"{stage}/{key}", draft)
        _publish(draft, root, stage, key)


def read_manifest(ref: ArtifactRef) -> dict[str, Any]:
    """Return the manifest of an artifact, without its seal.

    Raises:
        MissingArtifact: the folder or its manifest is gone.
        StaleArtifact: the manifest is not what was written, or that of another artifact.
    """
    return _read_sealed(ref)[0]


def _opened(ref: ArtifactRef, parts: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    folder = Path(ref.path)
    content, seal = _read_sealed(ref)
    with _refused(ref):
        check_files(folder, seal, parts)
    return folder, content


def _read_sealed(ref: ArtifactRef) -> tuple[dict[str, Any], Seal]:
    path = Path(ref.path) / MANIFEST
    try:
        with _refused(ref):
            return read_sealed(path.parent, ref.stage, ref.fingerprint)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingArtifact(
            f"{path} is missing; run the pipeline again to rebuild the stage {ref.stage!r}"
        ) from error


@contextmanager
def _refused(ref: ArtifactRef) -> Generator[None]:
    """Say what to do about a damaged artifact that somebody wants to read."""
    try:
        yield
    except StaleArtifact as error:
        raise StaleArtifact(
            f"{error}; run the pipeline again, which computes the stage {ref.stage!r} anew, or delete the "
            "folder"
        ) from error


def _is_sound(folder: Path, stage: str, key: str) -> bool:
    """Return whether an artifact is there as it was written; one that is damaged is not there afterwards."""
    complaint = _complaint(folder, stage, key)
    if complaint is None:
        return (folder / MANIFEST).is_file()
    logger.warning("%s; the artifact is removed, and computed again where it is needed", complaint)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp.damaged")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return False  # another process has removed it
    except OSError as error:
        raise StaleArtifact(f"{complaint}, and cannot be removed ({error}); delete the folder") from error
    if _complaint(aside, stage, key) is not None:
        shutil.rmtree(aside)
        return False
    # between the look and the move another process has put a sound one there
    _publish(aside, folder.parents[len(Path(stage).parts)], stage, key)
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _complaint(folder: Path, stage: str, key: str) -> str | None:
    """Return what is wrong with a finished artifact, None where nothing is or there is none."""
    try:
        check_files(folder, read_sealed(folder, stage, key)[1])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except StaleArtifact as error:
        return str(error)
    return None


def _fetched(root: Path, stage: str, key: str) -> bool:
    """Fetch an artifact from the object store of a root; return whether there is one that has it."""
    store, place = store_of(root), f"{stage}/{key}"
    if store is None or not has_artifact(store, place):
        return False
    with held_draft(artifact_folder(root, stage, key)) as draft:
        if not get_artifact(store, place, draft):
            return False
        try:
            read_sealed(draft, stage, key)
        except StaleArtifact as error:
            # its files are what was put there: it was never this artifact, or an earlier version wrote it
            logger.warning("%s; it is removed from %s, and computed again", error, store.address)
            remove_artifact(store, place)
            return False
        _publish(draft, root, stage, key)
    return True


def _publish(draft: Path, root: Path, stage: str, key: str) -> None:
    final = artifact_folder(root, stage, key)
    try:
        draft.replace(final)
    except OSError:
        was_there = final.exists()
        if _is_sound(final, stage, key):
            return  # another worker finished the same content first
        if not was_there:
            raise
        aside = damaged_name(draft)
        if final.exists():
            # a folder without a manifest is a damaged artifact: it is moved out of the way whole
            shutil.move(final, aside)
        draft.replace(final)
        shutil.rmtree(aside, ignore_errors=True)


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no stable JSON form; convert it before taking a fingerprint")
