"""Artifacts that no kept run needs: found by walking what kept runs refer to, and removed.

Reads and removes artifacts; reads trails and the catalog, and forgets there where removed features lay.
"""

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from clusterucb_core.artifacts import MANIFEST
from clusterucb_core.frozen import Frozen
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.forward import states_space
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.stages.scores import plain_space
from clusterucb_core.store import forget_feature_rows, open_catalog
from clusterucb_core.trails import RunTrail, newest_trails
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
    """
    if keep_runs < 1:
        raise ValueError(f"keep_runs={keep_runs} must be at least 1: the newest selection is always kept")
    kept = newest_trails(workspace)[:keep_runs]
    needed = needed_places(kept)
    before = time.time() - grace_s
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    spaces: set[str] = set()
    for folder in _unneeded(workspace.artifacts, needed, before):
        stage = folder.relative_to(workspace.artifacts).parts[0]
        counts[stage] = counts.get(stage, 0) + 1
        sizes[stage] = sizes.get(stage, 0) + _bytes_of(folder)
        if stage == FEATURES:
            spaces.add(folder.parent.name)
        if not dry_run:
            logger.info("removing %s", folder)
            shutil.rmtree(folder)
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


def _unneeded(root: Path, needed: set[Place], before: float) -> Iterator[Path]:
    """Yield finished artifacts that are not needed, and drafts, that are older than a time."""
    for stage in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else ():
        if stage.name in RESULT_STAGES:
            continue
        for folder in sorted(stage.iterdir()):
            if stage.name == FEATURES:
                keep = (FEATURES, folder.name) in needed
                shards = [shard for shard in sorted(folder.iterdir()) if not keep or shard.name[0] == "."]
                yield from (shard for shard in shards if _is_older(shard, before))
            elif (stage.name, folder.name) not in needed and _is_older(folder, before):
                yield folder


def _is_older(folder: Path, before: float) -> bool:
    manifest = folder / MANIFEST
    return (manifest if manifest.is_file() else folder).stat().st_mtime < before


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
