"""Copies of finished artifacts in an object store, which machines without a common folder share.

A folder of artifacts has a store where the folder's own name is the store's address, percent-encoded: a path
alone says whether what lies below it is a copy, and of what.
"""

from clusterucb_core.object_store.access import ObjectStore, open_store, probe, store_of
from clusterucb_core.object_store.addresses import (
    StorageRoot,
    check_address,
    is_address,
    mirror_folder,
    mirrored_address,
)
from clusterucb_core.object_store.copies import (
    StoredSize,
    get_artifact,
    has_artifact,
    list_below,
    put_artifact,
    remove_artifact,
    renew_artifact,
    stored_size,
)

__all__ = [
    "ObjectStore",
    "StorageRoot",
    "StoredSize",
    "check_address",
    "get_artifact",
    "has_artifact",
    "is_address",
    "list_below",
    "mirror_folder",
    "mirrored_address",
    "open_store",
    "probe",
    "put_artifact",
    "remove_artifact",
    "renew_artifact",
    "store_of",
    "stored_size",
]
