"""Addresses of object stores, and the names of the folders that mirror them.

An address is `PROTOCOL://BUCKET/PREFIX`, of any protocol that fsspec knows; it holds no credentials, which
come from the environment as fsspec's packages look for them.
"""

from pathlib import Path
from typing import Annotated
from urllib.parse import quote, unquote, urlsplit

from fsspec.registry import available_protocols
from pydantic import AfterValidator

from clusterucb_core.errors import InvalidConfig

OFTEN = ("s3", "gs", "az", "file")
FOLDERS = ("file", "local")
# Of these the part before an @ is a container, and no user.
CONTAINERS = ("abfs", "abfss", "az")
NAME_LIMIT = 255


def is_address(root: str) -> bool:
    """Return whether a storage root is an address rather than the path of a folder."""
    return "://" in root


def checked_root(root: str) -> str:
    """Return a storage root, with its address checked where it is one; raises as `check_address`."""
    if is_address(root):
        check_address(root)
    return root


StorageRoot = Annotated[str, AfterValidator(checked_root)]


def protocol_of(address: str) -> str:
    """Return the protocol of an address: `s3` for `s3://bucket/prefix`."""
    return urlsplit(address).scheme


def check_address(address: str) -> None:
    """Check what an address says, without asking what it leads to.

    Raises:
        InvalidConfig: it holds a secret, or is none that a store can be opened by. The message does not
            repeat what may be one.
    """
    parts = urlsplit(address)
    container = parts.scheme in CONTAINERS and ":" not in parts.netloc
    if ("@" in parts.netloc and not container) or parts.query or parts.fragment:
        raise InvalidConfig(
            f"execution.storage_root: the {parts.scheme} address holds a user, a password, or what follows "
            "a ? or #, and logs would show them; give PROTOCOL://BUCKET/PREFIX only, and put credentials "
            "into the environment"
        )
    if "::" in address or parts.scheme not in available_protocols():
        raise InvalidConfig(
            f"execution.storage_root={address}: {parts.scheme or address!r} is no protocol of an object "
            f"store; known are {', '.join(OFTEN)} and the others of fsspec"
        )
    if parts.scheme in FOLDERS and (parts.netloc or not parts.path.startswith("/")):
        raise InvalidConfig(f"execution.storage_root={address} is relative; give file:///ABSOLUTE/PATH")
    if len(_encoded(address)) > NAME_LIMIT:
        raise InvalidConfig(f"execution.storage_root={address} is too long to name a folder; shorten it")


def mirror_folder(staging: Path, address: str) -> Path:
    """Return the folder below `staging` that holds this machine's copies of what a store holds."""
    return staging / _encoded(address)


def mirrored_address(folder: Path) -> str | None:
    """Return the address of the store that a folder mirrors; None for a folder like any other."""
    address = unquote(folder.name)
    return address if is_address(address) and _encoded(address) == folder.name else None


def _encoded(address: str) -> str:
    return quote(address.rstrip("/"), safe="")
