"""The result of a whole run, kept so that a repeat with nothing changed finds it without computing anything.

Reads and writes the artifact `runs`; reads the catalog.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from clusterucb_core.artifacts import artifact_folder, find_artifact, new_artifact, read_manifest
from clusterucb_core.errors import DamagedCatalog, MissingArtifact, StaleArtifact, UnknownVersion
from clusterucb_core.frozen import Frozen
from clusterucb_core.planning import RunPlan
from clusterucb_core.stages.summary import SubjectSummary, TargetOutcome, Work
from clusterucb_core.store import open_catalog, selection_summary
from clusterucb_core.trails import trail_complaint
from clusterucb_core.workspace import Workspace

logger = logging.getLogger(__name__)

STAGE = "runs"
RESULT = "result.json"


class TargetResult(Frozen):
    """What a run came to for one of its targets.

    Attributes:
        target: the target's name.
        versions: its selection versions, period by period.
        selection_version: the last of them.
        subjects: the selection and its baselines.
    """

    target: str
    versions: tuple[int, ...]
    selection_version: int
    subjects: tuple[SubjectSummary, ...]


class RunResult(Frozen):
    """What a run came to.

    Attributes:
        run_id: fingerprint of everything that determines the run.
        pool_version: the pool that was selected from.
        versions: its selection versions, target by target and period by period.
        selection_version: the last one of the first target.
        subjects: the first target's selection and its baselines.
        targets: the same for each target, in the order of the configuration.
        work: what the call that returned this computed itself.
        checkpoints: folders of the artifacts that the result rests on.
        mlflow_run_id: the MLflow run, None where MLflow could not be reached.
        seconds: wall time of the call.
        warnings: what speaks against the selection, in plain words.
    """

    run_id: str
    pool_version: int
    versions: tuple[int, ...]
    selection_version: int
    subjects: tuple[SubjectSummary, ...]
    targets: tuple[TargetResult, ...]
    work: Work
    checkpoints: tuple[str, ...]
    mlflow_run_id: str | None
    seconds: float
    warnings: tuple[str, ...] = ()


def target_results(outcomes: Sequence[TargetOutcome]) -> tuple[TargetResult, ...]:
    """Return what a run came to, target by target."""
    return tuple(
        TargetResult(
            target=outcome.target,
            versions=outcome.versions,
            selection_version=outcome.versions[-1],
            subjects=outcome.subjects,
        )
        for outcome in outcomes
    )


def keep_result(plan: RunPlan, result: RunResult) -> None:
    """Keep the result of a finished run; an earlier one of the same run stays as long as it holds."""
    if finished_result(plan) is None:
        shutil.rmtree(artifact_folder(_root(plan), STAGE, plan.run_id), ignore_errors=True)
    # numbers start anew in a new catalog: what the versions are is kept beside them
    manifest = {"version_keys": _version_keys(plan, result)}
    with new_artifact(_root(plan), STAGE, plan.run_id, manifest) as folder:
        (folder / RESULT).write_text(result.model_dump_json(indent=1), encoding="utf-8")


def finished_result(plan: RunPlan) -> RunResult | None:
    """Return the result of an earlier run with the same inputs and settings, with no work of this call.

    Returns:
        None where there is none that this code can read, where a checkpoint that it rests on is gone or
        damaged, where its versions in the catalog are gone or those of another run, or where the trail of
        the run is damaged, which the stages write anew.
    """
    ref = find_artifact(_root(plan), STAGE, plan.run_id)
    if ref is None:
        return None
    try:
        result = RunResult.model_validate_json((Path(ref.path) / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        logger.warning("the kept result %s cannot be read and is made anew: %s", ref.path, error)
        return None
    if not all(_is_there(Path(folder)) for folder in result.checkpoints):
        return None
    if (complaint := trail_complaint(plan.run_id, plan.workspace)) is not None:
        logger.warning("%s", complaint)
        return None
    if not _has_versions(plan, result, read_manifest(ref).get("version_keys")):
        return None
    return result.model_copy(update={"work": Work(gradient_evaluations=0, trainings=0), "seconds": 0.0})


def _is_there(training: Path) -> bool:
    stage, key = training.parent.name, training.name
    return find_artifact(training.parents[1], stage, key) is not None


def _root(plan: RunPlan) -> Path:
    """Return where results lie: beside the catalog that numbers their versions, wherever artifacts are."""
    return Workspace(home=plan.workspace.home).artifacts


def _version_keys(plan: RunPlan, result: RunResult) -> list[str]:
    with open_catalog(plan.workspace.catalog, read_only=True) as con:
        return [selection_summary(con, version).selection_key for version in result.versions]


def _has_versions(plan: RunPlan, result: RunResult, keys: object) -> bool:
    try:
        return _version_keys(plan, result) == keys
    except DamagedCatalog:
        raise  # nothing can be published there: better told before anything is computed
    except (MissingArtifact, UnknownVersion, StaleArtifact):
        return False  # a catalog of an earlier version is migrated by the run that follows
