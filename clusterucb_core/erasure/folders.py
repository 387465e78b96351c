"""Replacing files and folders of artifacts so that a kill at any point leaves the old or the new one.

Reads and writes below the folders it is given. What is being written has a name that begins with a dot and
that no stage reads; the next erasure removes it, or puts a folder in its place that was complete.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clusterucb_core.seals import MANIFEST, FileDigest, Seal, digest_files, read_sealed, sealed_text

FEATURES = "features"
_WRITING, _WRITTEN = ".rewriting", ".rewritten"


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file by what `write` writes to the path that it is given."""
    draft = path.with_name(f".{path.name}{_WRITING}")
    write(draft)
    _sync(draft)
    draft.replace(path)
    _sync(path.parent)


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Replace a folder by what `fill` writes into the empty one that it is given."""
    draft = folder.with_name(f".{folder.name}{_WRITING}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    fill(draft)
    for path in draft.iterdir():
        _sync(path)
    written = folder.with_name(f".{folder.name}{_WRITTEN}")
    draft.replace(written)
    _put_in_place(written)


def stage_of(folder: Path) -> str:
    """Return the stage of the artifact that a folder is: that of a shard has two parts."""
    space = folder.parent
    return f"{FEATURES}/{space.name}" if space.parent.name == FEATURES else space.name


def manifest_of(folder: Path) -> tuple[dict[str, Any], Seal]:
    """Return what the manifest of an artifact says, and its seal.

    Raises:
        StaleArtifact: it is not what was written, or that of another artifact.
    """
    return read_sealed(folder, stage_of(folder), folder.name)


def write_manifest(
    folder: Path, content: Mapping[str, Any], changed: Mapping[str, FileDigest] | None = None
) -> None:
    """Write the manifest of an artifact anew.

    Args:
        folder: the artifact.
        content: what it says besides the seal.
        changed: the digests of the files that are not what they were; the others are not looked at, so that
            damage to them is still found.
    """
    seal = manifest_of(folder)[1]
    text = sealed_text(content, seal.model_copy(update={"files": seal.files | dict(changed or {})}))
    replace_file(folder / MANIFEST, lambda draft: _write_text(draft, text))


def seal_draft(draft: Path, content: Mapping[str, Any], seal: Seal) -> None:
    """Write the manifest of an artifact whose files, which lie in a draft of it, are all new."""
    text = sealed_text(content, seal.model_copy(update={"files": digest_files(draft)}))
    _write_text(draft / MANIFEST, text)


def sweep(parent: Path) -> int:
    """Remove what killed processes left among the artifacts of a folder, and finish what was complete.

    Returns:
        How many drafts and artifacts without a manifest were removed: nobody reads them, but text is in them.
    """
    removed = 0
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        if not path.is_dir():
            continue
        if path.name.startswith(".") and path.name.endswith(_WRITTEN):
            _put_in_place(path)
        elif path.name.startswith(".") or not (path / MANIFEST).is_file():
            shutil.rmtree(path)
            removed += 1
    return removed


def _put_in_place(written: Path) -> None:
    # the complete folder is renamed last: while it bears the other name it has still to take the place
    final = written.with_name(written.name.removeprefix(".").removesuffix(_WRITTEN))
    if final.exists():
        shutil.rmtree(final)
    written.replace(final)
    _sync(final.parent)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)
