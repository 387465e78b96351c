"""Drafts that killed processes left among the artifacts: removed by the run that has the folder to itself.

Removes folders and files below the artifact root of this machine. An artifact is written into a draft beside
it, which takes its name at the end; a process that is killed leaves the draft behind, as large as it was.
"""

import logging
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from clusterucb_core.pool.ingest import STAGE as INGEST
from clusterucb_core.workspace import Workspace

logger = logging.getLogger(__name__)

# `.KEY.1a2b3c4d.tmp`, and a damaged artifact on its way out
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.damaged)?")
# Others may write these without waiting for a turn: `clusterucb ingest`, or runs of other state folders.
SHARED_GRACE_S = 3 * 24 * 3600.0


def remove_leftovers(workspace: Workspace, *, shared_grace_s: float = SHARED_GRACE_S) -> int:
    """Remove the drafts that nobody writes any more; call it while no other run works in this state folder.

    Args:
        workspace: where artifacts lie.
        shared_grace_s: for how many seconds a draft must not have changed where another process may be
            writing it: of the ingest, or below a storage root.

    Returns:
        How many were removed.
    """
    removed, now = 0, time.time()
    for draft in _drafts(workspace.artifacts):
        stage = draft.relative_to(workspace.artifacts).parts[0]
        shared = workspace.storage_root is not None or stage == INGEST
        if shared and now - _changed_at(draft) < shared_grace_s:
            continue
        shutil.rmtree(draft, ignore_errors=True)
        removed += not draft.exists()
    if removed:
        logger.info("removed %d drafts that killed processes left below %s", removed, workspace.artifacts)
    return removed


def _drafts(root: Path) -> Iterator[Path]:
    """Yield the drafts of artifacts, which lie in `<stage>/` or `<stage>/<space>/`."""
    for pattern in ("*/.*", "*/*/.*"):
        yield from (path for path in root.glob(pattern) if path.is_dir() and _DRAFT.fullmatch(path.name))


def _changed_at(draft: Path) -> float:
    """Return when a draft last changed; it may be gone in the meantime."""
    times = [time.time()] if not draft.exists() else [draft.stat().st_mtime]
    for path in draft.rglob("*"):
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:  # its writer has just given it its name
            times.append(time.time())
    return max(times)
