"""What an erasure has to reach in object stores: everything is fetched first, and what changed is put back.

Reads and writes the artifacts below roots that mirror an object store, and the objects there.
"""

from collections.abc import Iterator
from pathlib import Path

from clusterucb_core.artifacts import MANIFEST, artifact_folder, find_artifact
from clusterucb_core.object_store import (
    ObjectStore,
    list_below,
    mirrored_address,
    remove_artifact,
    renew_artifact,
    store_of,
)
from clusterucb_core.workspace import Workspace


def current_mirror(root: Path, home: str) -> Path | None:
    """Return the folder of a state folder that mirrors the store of a root; None where the root has none.

    The root may be that of a state folder which lay elsewhere when it was recorded.
    """
    address = mirrored_address(root)
    return None if address is None else Workspace(home=home, storage_root=address).artifacts.absolute()


def fetch_stored(root: Path, stages: tuple[str, ...]) -> None:
    """Fetch the artifacts of some stages, and all features, that only the object store of a root has."""
    root.mkdir(parents=True, exist_ok=True)
    store = _store(root)
    for stage, key in _stored(store, stages):
        find_artifact(root, stage, key)


def renew_stored(root: Path, stages: tuple[str, ...]) -> int:
    """Make the object store of a root hold what the root holds of some stages, and of all features.

    What was never finished there, or is not here any more, is removed: nobody reads it, but text is in it.
    Repeated after a kill it finishes its work, since contents are compared and not what an erasure changed.

    Returns:
        The number of artifacts that were not the same.
    """
    store, changed = _store(root), 0
    for stage, key in _stored(store, stages):
        folder, place = artifact_folder(root, stage, key), f"{stage}/{key}"
        if (folder / MANIFEST).is_file():
            changed += renew_artifact(store, place, folder)
        else:
            remove_artifact(store, place)
            changed += 1
    return changed


def _store(root: Path) -> ObjectStore:
    store = store_of(root)
    assert store is not None, "the name of a mirror is an address"
    return store


def _stored(store: ObjectStore, stages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    spaces = (f"features/{space}" for space in list_below(store, "features"))
    for stage in (*stages, *spaces):
        for key in list_below(store, stage):
            yield stage, key
