"""Opening an object store, and reading and writing objects with errors that say what to do.

Reads and writes objects below one address.
"""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from clusterucb_core.errors import InvalidConfig, StorageUnavailable
from clusterucb_core.object_store.addresses import FOLDERS, check_address, mirrored_address, protocol_of

logger = logging.getLogger(__name__)

READS = 3
READ_AGAIN_AFTER_S = 1.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class ObjectStore:
    """An address, the file system that fsspec has for it, and the address as that file system calls it."""

    address: str
    files: Any
    root: str

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine, where objects leave folders behind."""
        return protocol_of(self.address) in FOLDERS


def store_of(folder: Path) -> ObjectStore | None:
    """Return the store that a folder of artifacts mirrors, or None; raises as `open_store`."""
    address = mirrored_address(folder)
    return None if address is None else open_store(address)


def open_store(address: str) -> ObjectStore:
    """Return the store at an address; nothing is asked of it yet.

    Raises:
        InvalidConfig: the address cannot be used, or the package for its protocol is not installed.
    """
    check_address(address)
    protocol = protocol_of(address)
    # an object store has no folders that must be there before their files
    options = {"auto_mkdir": True} if protocol in FOLDERS else {}
    try:
        files, root = url_to_fs(address, **options)
    except ImportError as error:
        package = str(known_implementations.get(protocol, {}).get("class", protocol)).split(".")[0]
        raise InvalidConfig(
            f"execution.storage_root={address} needs a package that is not installed here ({error}); "
            f"pip install {package}"
        ) from error
    return ObjectStore(address.rstrip("/"), files, str(root).rstrip("/"))


def probe(store: ObjectStore) -> None:
    """Check that the store can be written and read, and leave it as it was.

    Raises:
        StorageUnavailable: it cannot; the message says why.
    """
    absent = _absent_folders(store)
    path, content = f"{store.root}/.probe-{uuid.uuid4().hex}", b"clusterucb"
    writing(store, "a probe", lambda: store.files.pipe_file(path, content))
    try:
        found = reading(store, "a probe", lambda: store.files.cat_file(path))
    finally:
        writing(store, "a probe", lambda: store.files.rm_file(path))
        for folder in absent:
            folder.rmdir()
    if found != content:
        raise StorageUnavailable(f"{store.address} gives back {found[:20]!r} where {content!r} was put")


def reading(store: ObjectStore, what: str, read: Callable[[], Result]) -> Result:
    """Return what a read gives, tried again after a failure that may pass; absence is passed on.

    Args:
        store: what is read.
        what: the object, for the message.
        read: reads it.

    Raises:
        FileNotFoundError: the object is not there.
        StorageUnavailable: it could not be read.
    """
    for attempt in range(READS):
        store.files.invalidate_cache()  # what other machines wrote meanwhile counts
        try:
            return read()
        except FileNotFoundError:
            raise
        except Exception as error:  # each protocol's package has errors of its own
            if attempt == READS - 1 or isinstance(error, PermissionError):
                raise _unavailable(store, f"{what} could not be read", error) from error
            logger.warning("%s of %s could not be read (%s); trying again", what, store.address, error)
            time.sleep(READ_AGAIN_AFTER_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def writing(store: ObjectStore, what: str, write: Callable[[], object]) -> None:
    """Do a write, once.

    Raises:
        StorageUnavailable: it failed.
    """
    try:
        write()
    except Exception as error:
        raise _unavailable(store, f"{what} could not be written", error) from error


def _absent_folders(store: ObjectStore) -> list[Path]:
    """Return the folders that writing to a store of folders will make, the innermost first."""
    root = Path(store.root)
    return [place for place in (root, *root.parents) if store.is_folder and not place.exists()]


def _unavailable(store: ObjectStore, what: str, error: Exception) -> StorageUnavailable:
    return StorageUnavailable(
        f"execution.storage_root={store.address}: {what} ({type(error).__name__}: {error}); see that the "
        "bucket exists, that this machine reaches it, and that the environment holds credentials for it"
    )
