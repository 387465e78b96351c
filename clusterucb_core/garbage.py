"""Artifacts that no kept run needs: found by walking what kept runs refer to, and removed.

Reads and removes artifacts, in object stores too; reads trails and the catalog, and forgets there where
removed features lay.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from clusterucb_core.artifacts import MANIFEST, artifact_folder, discard_artifact
from clusterucb_core.frozen import Frozen
from clusterucb_core.object_store import ObjectStore, StoredSize, list_below, store_of, stored_size
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.forward import states_space
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.stages.scores import plain_space
from clusterucb_core.store import forget_feature_rows, open_catalog
from clusterucb_core.trails import RunTrail, check_trails, newest_trails
from clusterucb_core.workspace import Workspace, stage_key

logger = logging.getLogger(__name__)

# Small, and the only record of what a run or a comparison came to.
RESULT_STAGES = ("runs", "trails", "comparisons")
FEATURES = "features"

Place = tuple[str, str]


class Removed(Frozen):
    """What a collection removed, or would remove: artifacts and bytes by stage.

    `kept_runs` are the runs whose artifacts stayed.
    """

    kept_runs: tuple[str, ...]
    artifacts: dict[str, int]
    bytes: dict[str, int]
    dry_run: bool


def collect_garbage(
    workspace: Workspace, *, keep_runs: int, grace_s: float, dry_run: bool = False
) -> Removed:
    """Remove the artifacts that none of the newest runs needs.

    What is younger than the grace stays whatever it is: a run that is under way, or that failed and will be
    taken up again, has left no trail yet. Call it while no run is under way in this state folder, and for a
    storage root only where no other state folder shares it.

    Args:
        workspace: where artifacts and catalog lie.
        keep_runs: the newest runs, at least 1, whose artifacts stay.
        grace_s: age in seconds below which an artifact stays.
        dry_run: only tell what would be removed.

    Raises:
        ValueError: `keep_runs` is below 1.
        StaleArtifact: the trail of one of the newest runs is damaged, so that nobody can tell what it needs.
        StorageUnavailable: an object store could not be read or written.
    """
    if keep_runs < 1:
        raise ValueError(f"keep_runs={keep_runs} must be at least 1: the newest selection is always kept")
    kept = newest_trails(workspace)[:keep_runs]
    check_trails(workspace, after=kept[-1] if len(kept) == keep_runs else None)
    root, before = workspace.artifacts, time.time() - grace_s
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    spaces: set[str] = set()
    for stage, key in _unneeded(root, needed_places(kept)):
        copies = list(_copies(root, stage, key))
        if not copies or any(copy.written_at >= before for copy in copies):
            continue
        kind, *space = stage.split("/")
        counts[kind] = counts.get(kind, 0) + 1
        sizes[kind] = sizes.get(kind, 0) + sum(copy.bytes for copy in copies)
        spaces.update(space)
        if not dry_run:
            logger.info("removing %s", artifact_folder(root, stage, key))
            discard_artifact(root, stage, key)
    if spaces and not dry_run:
        with open_catalog(workspace.catalog) as con:
            forget_feature_rows(con, sorted(spaces))
    return Removed(
        kept_runs=tuple(trail.run_id for trail in kept), artifacts=counts, bytes=sizes, dry_run=dry_run
    )


def needed_places(trails: Iterable[RunTrail]) -> set[Place]:
    """Return the stage and the key of every artifact that runs refer to; a feature space is one place."""
    needed: set[Place] = set()
    for trail in trails:
        needed.update(_places(trail))
    return needed


def _places(value: object) -> Iterator[Place]:
    if isinstance(value, ArtifactRef):
        yield value.stage, value.fingerprint
    elif isinstance(value, BaseModel):
        if isinstance(value, FeatureSpace):
            for space in (value, plain_space(value), states_space(value.model, value.checkpoint)):
                yield FEATURES, stage_key(space)
        for name in type(value).model_fields:
            yield from _places(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():  # pyright: ignore[reportUnknownVariableType]
            yield from _places(item)
    elif isinstance(value, tuple | list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _places(item)


def _unneeded(root: Path, needed: set[Place]) -> Iterator[Place]:
    """Yield the artifacts that are not needed, finished or not, here or in the object store of the root."""
    store = store_of(root)
    for stage in _names(root, store):
        if stage in RESULT_STAGES:
            continue
        for name in _names(root, store, stage):
            if stage != FEATURES:
                yield from [(stage, name)] if (stage, name) not in needed else []
                continue
            keep = (FEATURES, name) in needed
            shards = _names(root, store, f"{FEATURES}/{name}")
            yield from ((f"{FEATURES}/{name}", shard) for shard in shards if not keep or shard[0] == ".")


def _names(root: Path, store: ObjectStore | None, place: str = "") -> list[str]:
    here = (root / place).iterdir() if (root / place).is_dir() else ()
    stored = () if store is None else list_below(store, place)
    return sorted({*(path.name for path in here if path.is_dir()), *stored})


def _copies(root: Path, stage: str, key: str) -> Iterator[StoredSize]:
    """Yield the size and the age of an artifact where it is: in its folder, in the object store, in both."""
    folder, store = artifact_folder(root, stage, key), store_of(root)
    if folder.is_dir():
        dated = folder / MANIFEST if (folder / MANIFEST).is_file() else folder
        content = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield StoredSize(bytes=content, written_at=dated.stat().st_mtime)
    if store is not None and (size := stored_size(store, f"{stage}/{key}")) is not None:
        yield size
