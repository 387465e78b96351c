"""What an artifact holds, told by digests: the seal in its manifest, and whether the files are still those.

A manifest is a JSON object whose last key is the digest of all that stands before it. Its key `seal` names
the artifact's stage and fingerprint, and the size and the SHA-256 digest of every file beside it, so that a
folder under another name or a file from elsewhere is found out. Reads the files of the folders it is given.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clusterucb_core.errors import StaleArtifact
from clusterucb_core.frozen import Frozen

MANIFEST = "manifest.json"
SEAL = "seal"
OWN_DIGEST = "own_sha256"

_OWN_DIGEST_LINE = f',\n "{OWN_DIGEST}": "'.encode()
# A file that changed less long ago may change again within the same tick of the file system's clock.
_SETTLED_NS = 100_000_000


class FileDigest(Frozen):
    """The size and the SHA-256 digest of one file."""

    bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.bytes} bytes of SHA-256 {self.sha256[:12]}"


class Seal(Frozen):
    """Which artifact a manifest belongs to, and its files by their paths in its folder."""

    stage: str
    fingerprint: str
    files: dict[str, FileDigest]


@dataclass(frozen=True)
class _FileState:
    """A file as it stands: any write changes its times, and a file put in its place has another inode."""

    path: Path = field(compare=False)
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex, read in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_file(path: Path) -> FileDigest:
    """Return the size and the digest of a file, read now."""
    return FileDigest(bytes=path.stat().st_size, sha256=file_digest(path))


def digest_files(folder: Path) -> dict[str, FileDigest]:
    """Return the digests of all files below a folder, its manifest aside."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in paths}


def digested_text(content: Mapping[str, Any]) -> str:
    """Return a JSON object that ends with the digest of its own text; `content` holds a value at least."""
    body = json.dumps(content, indent=1, sort_keys=True).removesuffix("\n}").encode()
    return (body + _OWN_DIGEST_LINE).decode() + hashlib.sha256(body).hexdigest() + '"\n}'


def read_digested(path: Path) -> dict[str, Any]:
    """Return a JSON object that ends with its digest, without it.

    Raises:
        FileNotFoundError: there is no such file.
        StaleArtifact: it is not what was written.
    """
    raw = path.read_bytes()
    body, line, tail = raw.rpartition(_OWN_DIGEST_LINE)
    if not line:
        raise StaleArtifact(
            f"{path} is damaged, or was written by an earlier version: its {len(raw)} bytes do not end with "
            "their digest"
        )
    expected, found = tail.removesuffix(b'"\n}'), hashlib.sha256(body).hexdigest().encode()
    if tail != found + b'"\n}':
        raise StaleArtifact(
            f"{path} is damaged: its SHA-256 is {found[:12].decode()} instead of "
            f"{expected[:12].decode(errors='replace')}"
        )
    return json.loads(body + b"\n}")


def sealed_text(content: Mapping[str, Any], seal: Seal) -> str:
    """Return the text of a manifest with its seal and its own digest; `content` holds JSON values."""
    return digested_text({**content, SEAL: seal.model_dump()})


def read_sealed(folder: Path, stage: str, key: str) -> tuple[dict[str, Any], Seal]:
    """Return what a manifest says besides its seal, and the seal.

    Args:
        folder: holds the manifest; its own name does not matter.
        stage: the artifact's stage.
        key: the artifact's fingerprint.

    Raises:
        FileNotFoundError: there is no manifest.
        StaleArtifact: it is not what was written, or that of another artifact.
    """
    path = folder / MANIFEST
    content = read_digested(path)
    try:
        seal = Seal.model_validate(content.pop(SEAL))
    except (KeyError, ValidationError) as error:
        raise StaleArtifact(f"{path} has no seal that can be read ({error})") from error
    if (seal.stage, seal.fingerprint) != (stage, key):
        raise StaleArtifact(
            f"{folder} lies where {stage}/{key} belongs, but holds {seal.stage}/{seal.fingerprint}"
        )
    return content, seal


def check_files(folder: Path, seal: Seal, parts: tuple[str, ...] = ()) -> None:
    """Check that files are what was sealed, reading each only once as long as it stays as it is.

    Args:
        folder: where they lie.
        seal: of the artifact.
        parts: the files and folders to look at; none means all.

    Raises:
        StaleArtifact: a file is gone or holds something else, or the seal does not know a part.
    """
    for part in parts:
        if not any(_is_below(name, part) for name in seal.files):
            raise StaleArtifact(f"{seal.stage}/{seal.fingerprint} was written without {part}")
    wanted = {
        name: digest
        for name, digest in seal.files.items()
        if not parts or any(_is_below(name, part) for part in parts)
    }
    check_digests(folder, wanted)


def check_digests(folder: Path, files: Mapping[str, FileDigest]) -> None:
    """Check that files below a folder have their digests; raises as `check_files`."""
    for name, expected in files.items():
        _check_file(folder / name, expected)


def _check_file(path: Path, expected: FileDigest) -> None:
    try:
        # what is as long as it should be is read; of anything else the length tells enough
        size = path.stat().st_size
        found = (
            FileDigest(bytes=size, sha256=_digest_once(path)) if size == expected.bytes else f"{size} bytes"
        )
    except FileNotFoundError:
        found = "absent"
    if found != expected:
        raise StaleArtifact(f"{path} is damaged: it is {found} instead of {expected}")


def _digest_once(path: Path) -> str:
    """Return the digest of a file, read again only where it changed since this process last read it."""
    status = path.stat()
    state = _FileState(
        path=path,
        device=status.st_dev,
        inode=status.st_ino,
        size=status.st_size,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
    )
    if time.time_ns() - state.changed_ns < _SETTLED_NS:
        return file_digest(path)
    return _settled_digest(state)


@lru_cache(maxsize=65536)
def _settled_digest(state: _FileState) -> str:
    return file_digest(state.path)


def _is_below(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}/")
