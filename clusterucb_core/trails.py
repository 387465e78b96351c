"""What a finished run leaves for a re-selection to follow: its checkpoints, clusters and draws.

Reads and writes the artifact `trails`; reads the catalog.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from clusterucb_core.artifacts import (
    artifact_file,
    artifact_folder,
    artifact_keys,
    find_artifact,
    new_artifact,
    open_artifact,
    still_there,
)
from clusterucb_core.config import RunConfig
from clusterucb_core.errors import MissingArtifact, StaleArtifact
from clusterucb_core.frozen import Frozen
from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.publication import version_key
from clusterucb_core.stages.summary import Trajectory
from clusterucb_core.store import PoolVersion, SelectionSummary, list_selections, open_catalog
from clusterucb_core.workspace import Workspace, stage_key

logger = logging.getLogger(__name__)

STAGE = "trails"
TRAIL = "trail.json"


class TargetTrail(Frozen):
    """The selections of one target, period by period, with their versions.

    `candidates` could be drawn; `subjects` are the selection, which comes first, and its baselines, with the
    `evaluations` of those that were measured.
    """

    target: str
    candidates: ArtifactRef
    versions: tuple[int, ...]
    subjects: tuple[Trajectory, ...]
    evaluations: tuple[ArtifactRef, ...] = ()

    @property
    def chosen(self) -> Trajectory:
        """The selection."""
        return self.subjects[0]


class RunTrail(Frozen):
    """A finished run as a re-selection finds it.

    Attributes:
        run_id: the run.
        lineage: names everything that selects but the pool.
        config: what it computed.
        pool_key: names the files that its pool was read from.
        pool_version: its pool.
        at_warmup: the candidates that its warmup was drawn from.
        inputs: what its files became, in artifacts.
        version_keys: what its selection versions are found by, target by target.
        targets: its selections.
    """

    run_id: str
    lineage: str
    config: RunConfig
    pool_key: str
    pool_version: int
    at_warmup: ArtifactRef
    inputs: tuple[ArtifactRef, ...]
    version_keys: tuple[str, ...]
    targets: tuple[TargetTrail, ...]


def run_trail(
    plan: RunPlan,
    pool_version: PoolVersion,
    targets: Sequence[TargetTrail],
    *,
    at_warmup: ArtifactRef,
    inputs: Sequence[ArtifactRef],
) -> RunTrail:
    """Return the trail of a run that has published its selections."""
    return RunTrail(
        run_id=plan.run_id,
        lineage=plan.lineage,
        config=plan.config,
        pool_key=stage_key(plan.ingest),
        pool_version=pool_version.pool_version,
        at_warmup=at_warmup,
        inputs=tuple(inputs),
        version_keys=tuple(
            version_key(plan.selection_keys[target.target], period.spec)
            for target in targets
            for period in target.chosen.periods
        ),
        targets=tuple(targets),
    )


def keep_trail(trail: RunTrail, workspace: Workspace) -> None:
    """Keep the trail of a run; another that an earlier attempt has left makes room for it."""
    text = trail.model_dump_json()
    kept = find_artifact(_root(workspace), STAGE, trail.run_id)
    if kept is not None and artifact_file(kept, TRAIL).read_text("utf-8") == text:
        return
    shutil.rmtree(artifact_folder(_root(workspace), STAGE, trail.run_id), ignore_errors=True)
    with new_artifact(_root(workspace), STAGE, trail.run_id, {}) as folder:
        (folder / TRAIL).write_text(text, encoding="utf-8")


def followed_trail(plan: RunPlan) -> RunTrail:
    """Return the newest run of the plan's lineage.

    Raises:
        MissingArtifact: there is none, or a checkpoint, a clustering or draws of it are gone.
        StaleArtifact: one of these is damaged, or the trail of a newer run is, which may be of the lineage.
    """
    trail = next((trail for trail in newest_trails(plan.workspace) if trail.lineage == plan.lineage), None)
    check_trails(plan.workspace, after=trail)
    if trail is None:
        raise MissingArtifact(
            "no finished run with these settings, model and targets is there to be followed; start one with "
            "`clusterucb run CONFIG`"
        )
    gone = [ref.path for ref in followed_artifacts(trail) if not still_there(ref)]
    if gone:
        raise MissingArtifact(
            f"run {trail.run_id[:8]} cannot be followed: {len(gone)} of its artifacts are gone, the first "
            f"{gone[0]}; start anew with `clusterucb run CONFIG`"
        )
    return trail


def trail_of(run_id: str, workspace: Workspace) -> RunTrail:
    """Return the trail that a run has left.

    Raises:
        MissingArtifact: it has left none.
        StaleArtifact: it is damaged.
    """
    if (complaint := trail_complaint(run_id, workspace)) is not None:
        raise StaleArtifact(complaint)
    found = [trail for trail in newest_trails(workspace) if trail.run_id == run_id]
    if not found:
        raise MissingArtifact(f"run {run_id[:8]} has left no trail; run it again")
    return found[0]


def newest_trails(workspace: Workspace) -> list[RunTrail]:
    """Return the trails of all runs whose selections the catalog holds, that of the newest first."""
    keys = {item.selection_version: item.selection_key for item in _selections(workspace)}
    held = [trail for trail in _trails(workspace) if _versions(trail, keys) == list(trail.version_keys)]
    return sorted(held, key=lambda trail: max(_numbers(trail)), reverse=True)


def check_trails(workspace: Workspace, *, after: RunTrail | None) -> None:
    """Check that no run newer than one, or none at all, has a damaged trail, which nobody can place.

    Raises:
        StaleArtifact: a trail is damaged.
    """
    damaged = [
        (key, complaint)
        for key in artifact_keys(_root(workspace), STAGE)
        if (complaint := trail_complaint(key, workspace)) is not None
    ]
    if not damaged:
        return
    last = 0 if after is None else max(_numbers(after))
    newer = {item.run_id for item in _selections(workspace) if item.selection_version > last}
    for run_id, complaint in damaged:
        if run_id in newer:
            raise StaleArtifact(
                f"the newest runs cannot be told: {complaint}, or delete the folder, and that run is not "
                "followed any more"
            )


def _selections(workspace: Workspace) -> list[SelectionSummary]:
    """Return what the catalog holds of selections; nothing where there is none yet."""
    try:
        with open_catalog(workspace.catalog, read_only=True) as con:
            return list_selections(con)
    except MissingArtifact:
        return []


def trail_complaint(run_id: str, workspace: Workspace) -> str | None:
    """Return what is wrong with the trail of a run and how to mend it; None where it is sound or absent."""
    try:
        open_artifact(_ref(run_id, workspace))
    except MissingArtifact:
        return None
    except StaleArtifact as error:
        # what is to be done about a damaged trail is another thing: no stage computes it
        complaint = str(error.__cause__)
        return f"{complaint}; run its configuration again by `clusterucb run CONFIG`, which writes it anew"
    return None


def followed_artifacts(trail: RunTrail) -> Iterator[ArtifactRef]:
    """Yield what a re-selection reads of a run besides features."""
    yield trail.at_warmup
    for target in trail.targets:
        yield target.candidates
        for period in target.chosen.periods:
            yield period.draws
            if period.spec.clustering is not None:
                yield period.spec.clustering
            for space in period.spec.spaces:
                if space.checkpoint is not None:
                    yield space.checkpoint.training


def _numbers(trail: RunTrail) -> list[int]:
    return [version for target in trail.targets for version in target.versions]


def _versions(trail: RunTrail, keys: dict[int, str]) -> list[str | None]:
    return [keys.get(version) for version in _numbers(trail)]


def _trails(workspace: Workspace) -> Iterator[RunTrail]:
    for run_id in artifact_keys(_root(workspace), STAGE):
        ref = _ref(run_id, workspace)
        try:
            yield RunTrail.model_validate_json(artifact_file(ref, TRAIL).read_text(encoding="utf-8"))
        except MissingArtifact:
            continue  # a folder that was never finished
        except (ValidationError, StaleArtifact) as error:
            # left by another version of this program, or damaged: others can be followed, and who needs
            # this one is told by `check_trails`
            logger.warning("the trail %s cannot be read and is passed over: %s", ref.path, error)


def _ref(run_id: str, workspace: Workspace) -> ArtifactRef:
    folder = artifact_folder(_root(workspace), STAGE, run_id)
    return ArtifactRef(stage=STAGE, fingerprint=run_id, path=str(folder))


def _root(workspace: Workspace) -> Path:
    """Return where trails lie: beside the catalog that numbers their versions, wherever artifacts are."""
    return Workspace(home=workspace.home).artifacts
