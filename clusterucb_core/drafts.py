"""Drafts of artifacts: folders beside the artifacts that they become, each held by the process that fills it.

Folders made and removed: `.<name>.<host><number>.tmp` beside an artifact's. The operating system gives the
hold back when its holder ends, however it ends: a draft of this machine that nobody holds is what a killed
process left. It goes when the same artifact is begun again, and after a day with whatever is made beside it.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from clusterucb_core.errors import RunStopped

logger = logging.getLogger(__name__)

SUFFIX = ".tmp"
DAMAGED = ".damaged"
# so long a run that was killed may take to go on from what it had finished, while others work beside it
LEFT_ALONE_S = 24 * 3600.0


@contextmanager
def held_draft(final: Path, *, keep: str | None = None) -> Generator[Path]:
    """Give an empty sibling of a folder, which is gone or has another name when the block ends.

    Args:
        final: the folder that it is to become.
        keep: what a killed process has finished of this very artifact, as a pattern of names: it is in the
            draft already. None begins anew.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    draft, hold = _made(final)
    try:
        for dead in _dead_drafts(final.parent):
            _clear(dead, final, draft, keep)
        yield draft
        shutil.rmtree(draft, ignore_errors=True)
    except BaseException as error:
        # a run that is asked to stop leaves what it had finished, as one that is killed does
        stopped = isinstance(error, RunStopped) or not isinstance(error, Exception)
        if keep is None or not stopped:
            shutil.rmtree(draft, ignore_errors=True)
        raise
    finally:
        os.close(hold)


def damaged_name(draft: Path) -> Path:
    """Return where a folder that stands in a draft's way is moved to."""
    return draft.with_name(f"{draft.name}{DAMAGED}")


def _made(final: Path) -> tuple[Path, int]:
    while True:
        draft = final.parent / f".{final.name}.{_host()}{uuid.uuid4().hex[:8]}{SUFFIX}"
        draft.mkdir()
        try:
            hold = os.open(draft, os.O_RDONLY)
        except FileNotFoundError:
            continue  # taken for dead in the moment before it was held
        try:
            fcntl.flock(hold, fcntl.LOCK_EX)
        except OSError as error:  # a file system without such locks: nobody can tell that this draft is dead
            logger.debug("%s cannot be held: %s", draft, error)
        if draft.is_dir():
            return draft, hold
        os.close(hold)


def _dead_drafts(folder: Path) -> Iterator[Path]:
    """Yield the drafts of this machine that nobody holds; each is held until the next one is asked for."""
    for path in folder.glob(f".*.{_host()}*{SUFFIX}*"):
        try:
            hold = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it has just become an artifact
        try:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                yield path
        except OSError as error:
            logger.debug("%s is left alone: %s", path, error)
        finally:
            os.close(hold)


def _clear(dead: Path, final: Path, draft: Path, keep: str | None) -> None:
    """Remove a dead draft, where nobody will go on from it; first take over what this draft goes on from."""
    if _belongs_to(dead, final):
        if keep is not None:
            _take_over(dead, draft, keep)
    elif time.time() - dead.stat().st_mtime < LEFT_ALONE_S:
        return
    logger.info("removing %s, which a process that was killed left", dead)
    shutil.rmtree(dead, ignore_errors=True)


def _belongs_to(draft: Path, final: Path) -> bool:
    return draft.name.startswith(f".{final.name}.")


def _take_over(dead: Path, draft: Path, keep: str) -> None:
    for path in dead.glob(keep):
        if not (draft / path.name).exists():
            path.replace(draft / path.name)


def _host() -> str:
    """Return what marks the drafts of this machine: a lock does not tell whether another machine's live."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
