"""Artifacts as objects: written whole or not at all, checked when they are fetched.

Reads and writes objects below one address: an artifact's files are `<stage>/<key>/<SHA-256>-<name>`, and
`<stage>/<key>/index.json` names them with their sizes and digests. The index is written last, so that an
artifact with an index is there whole. Objects are named by their content: two processes that write the same
artifact, or one that does it again, never change what is there.
"""

import logging
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from clusterucb_core.errors import StaleArtifact, StorageUnavailable
from clusterucb_core.frozen import Frozen
from clusterucb_core.object_store.access import READS, ObjectStore, reading, writing
from clusterucb_core.object_store.addresses import NAME_LIMIT
from clusterucb_core.seals import FileDigest, digest_file

logger = logging.getLogger(__name__)

INDEX = "index.json"


class _Index(Frozen):
    """The files of an artifact by their paths in it, and when the last of them was written."""

    files: dict[str, FileDigest]
    written_at: float


class StoredSize(Frozen):
    """How large an artifact is in the store, and when it was written, in seconds since the epoch."""

    bytes: int
    written_at: float


def put_artifact(store: ObjectStore, place: str, folder: Path) -> None:
    """Store a finished artifact; return at once where it is there already.

    Args:
        store: where to.
        place: the artifact, `<stage>/<key>`.
        folder: its files.

    Raises:
        StorageUnavailable: the store did not take it, or not whole.
    """
    current = _read_index(store, place)
    if current is None or not _is_whole(store, place, current):
        _upload(store, place, folder, _index_of(folder))


def renew_artifact(store: ObjectStore, place: str, folder: Path) -> bool:
    """Make the store hold what a folder holds, and nothing else of this artifact; return whether it changed.

    No other process may be writing the artifact.

    Raises:
        StorageUnavailable: the store could not be read or written.
    """
    index, current = _index_of(folder), _read_index(store, place)
    changed = current is None or current.files != index.files
    if changed:
        _upload(store, place, folder, index)
    named = {_index_path(store, place)}
    named |= {_object_path(store, place, name, file) for name, file in index.files.items()}
    others = [path for path in _objects(store, place) if path not in named]
    if others:
        writing(store, place, lambda: store.files.rm(others))
    return changed or bool(others)


def get_artifact(store: ObjectStore, place: str, folder: Path) -> bool:
    """Fetch an artifact into an empty folder; return whether the store has it.

    Files get the time at which the artifact was written: what a run computed is told by it.

    Raises:
        StaleArtifact: an object is not what the index says, however often it is fetched.
        StorageUnavailable: the store could not be read.
    """
    index = _read_index(store, place)
    if index is None:
        return False
    for name, file in index.files.items():
        _fetch(store, place, name, file=file, folder=folder)
        os.utime(folder / name, (index.written_at, index.written_at))
    logger.info("fetched %s from %s: %d files", place, store.address, len(index.files))
    return True


def has_artifact(store: ObjectStore, place: str) -> bool:
    """Return whether the store has an artifact; raises `StorageUnavailable` where nobody can tell."""
    return _read_index(store, place) is not None


def list_below(store: ObjectStore, place: str = "") -> list[str]:
    """Return the names one level below a place, sorted: of stages, feature spaces or artifacts.

    An artifact that is being written, or never was finished, is among them.

    Raises:
        StorageUnavailable: the store could not be read.
    """
    path = f"{store.root}/{place}".rstrip("/")
    try:
        found = reading(store, place or "the list", lambda: store.files.ls(path, detail=True))
    except FileNotFoundError:
        return []
    folders = {item["name"].rstrip("/") for item in found if item["type"] == "directory"}
    return sorted(folder.rsplit("/", 1)[1] for folder in folders - {path})  # an empty object may name itself


def stored_size(store: ObjectStore, place: str) -> StoredSize | None:
    """Return the size and the age of an artifact, and None where nothing of it is there.

    Those of an artifact that was never finished are those of its objects.

    Raises:
        StorageUnavailable: the store could not be read.
    """
    index = _read_index(store, place)
    if index is not None:
        return StoredSize(bytes=sum(file.bytes for file in index.files.values()), written_at=index.written_at)
    objects = _objects(store, place)
    if not objects:
        return None
    sizes = [_size(store, path) or 0 for path in objects]
    times = [reading(store, path, partial(store.files.modified, path)).timestamp() for path in objects]
    return StoredSize(bytes=sum(sizes), written_at=max(times))


def remove_artifact(store: ObjectStore, place: str) -> None:
    """Remove an artifact, its index first: what is left of it at a kill is not there for anybody.

    Raises:
        StorageUnavailable: the store could not be read or written.
    """

    def remove(path: str, *, recursive: bool) -> None:
        with suppress(FileNotFoundError):
            store.files.rm(path, recursive=recursive)

    writing(store, place, lambda: remove(_index_path(store, place), recursive=False))
    writing(store, place, lambda: remove(f"{store.root}/{place}", recursive=True))


def _index_path(store: ObjectStore, place: str) -> str:
    return f"{store.root}/{place}/{INDEX}"


def _object_path(store: ObjectStore, place: str, name: str, file: FileDigest) -> str:
    return f"{store.root}/{place}/{file.sha256}-{PurePosixPath(name).name}"


def _index_of(folder: Path) -> _Index:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): digest_file(path) for path in paths}
    return _Index(files=files, written_at=max(path.stat().st_mtime for path in paths))


def _read_index(store: ObjectStore, place: str) -> _Index | None:
    path = _index_path(store, place)
    try:
        text = reading(store, f"{place}/{INDEX}", lambda: store.files.cat_file(path))
    except FileNotFoundError:
        return None
    try:
        return _Index.model_validate_json(text)
    except ValidationError as error:
        # nobody can tell which objects are meant: as good as not written, until it is written again
        logger.warning("%s cannot be read, so the artifact counts as absent: %s", path, error)
        return None


def _is_whole(store: ObjectStore, place: str, index: _Index) -> bool:
    files = index.files.items()
    return all(_size(store, _object_path(store, place, name, file)) == file.bytes for name, file in files)


def _upload(store: ObjectStore, place: str, folder: Path, index: _Index) -> None:
    for name, file in index.files.items():
        path = _object_path(store, place, name, file)
        if _size(store, path) == file.bytes:
            continue  # by another process, or by this one before it was killed
        _put(store, path, partial(store.files.put_file, str(folder / name)))
        if (size := _size(store, path)) != file.bytes:
            raise StorageUnavailable(
                f"{store.address} kept {size} of the {file.bytes} bytes of {place}/{name}; see that it has "
                "room, and run again"
            )
    text = index.model_dump_json(indent=1).encode()
    _put(store, _index_path(store, place), lambda path: store.files.pipe_file(path, text))


def _put(store: ObjectStore, path: str, put: Callable[[str], object]) -> None:
    """Write an object that appears whole: where the store is a folder, under another name at first."""
    draft = f"{path}.{uuid.uuid4().hex[:8]}.tmp" if store.is_folder else path
    writing(store, path, lambda: put(draft))
    if draft != path:
        writing(store, path, lambda: store.files.mv(draft, path))


def _fetch(store: ObjectStore, place: str, name: str, *, file: FileDigest, folder: Path) -> None:
    target, path = folder / name, _object_path(store, place, name, file)
    if not _is_name_within(name):
        raise StaleArtifact(
            f"the index of {place} in {store.address} names {name[:NAME_LIMIT]!r}, which lies outside or is "
            f"no path of a file; remove everything below {place} there and run again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    seen = ""
    for _ in range(READS):
        try:
            reading(store, f"{place}/{name}", lambda: store.files.get_file(path, str(target)))
            found = digest_file(target)
        except FileNotFoundError:
            found = None
        if found == file:
            return
        seen = "absent" if found is None else str(found)
        logger.warning("%s/%s in %s is %s; fetching it again", place, name, store.address, seen)
    raise StaleArtifact(
        f"{place}/{name} in {store.address} is {seen} instead of {file}; remove everything "
        f"below {place} there and run again"
    )


def _is_name_within(name: str) -> bool:
    """Tell whether a name leads to a file below the folder that it is put to, on any system."""
    parts = name.split("/")
    plain = name.isprintable() and not set("\\:") & set(name)
    return plain and all(part not in ("", ".", "..") and len(part.encode()) <= NAME_LIMIT for part in parts)


def _size(store: ObjectStore, path: str) -> int | None:
    try:
        return reading(store, path, lambda: store.files.size(path))
    except FileNotFoundError:
        return None


def _objects(store: ObjectStore, place: str) -> list[str]:
    try:
        return reading(store, place, lambda: list(store.files.find(f"{store.root}/{place}")))
    except FileNotFoundError:
        return []
