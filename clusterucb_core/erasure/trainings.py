"""Which trainings learned from a sample: weights cannot forget, so they are named.

Reads the artifacts `training`.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clusterucb_core.erasure.folders import manifest_of
from clusterucb_core.errors import StaleArtifact
from clusterucb_core.frozen import Frozen
from clusterucb_core.seals import MANIFEST, check_files
from clusterucb_core.stages.training import TRAINED_IDS

logger = logging.getLogger(__name__)


class TrainedOn(Frozen):
    """A training artifact, and whether it learned from a sample.

    `how` is `sample` where it was trained on it, `start` where it went on from a checkpoint that was, and
    `unknown` where it was written before trainings kept the ids of their samples, or is damaged.
    """

    path: str
    run_id: str
    how: str


def trained_on(roots: Iterable[Path], sample_ids: frozenset[str]) -> list[TrainedOn]:
    """Return the trainings whose checkpoints hold, or may hold, what they learned from the samples."""
    manifests = {
        folder: _manifest(folder)
        for root in roots
        for folder in sorted(root.glob("training/[!.]*"))
        if (folder / MANIFEST).is_file()
    }
    how = {folder: found for folder in manifests if (found := _own(folder, sample_ids)) is not None}
    learned = {folder.name for folder, found in how.items() if found == "sample"}
    while later := _later(manifests, learned):  # periods go on from each other
        how |= dict.fromkeys(later, "start")
        learned |= {folder.name for folder in later}
    return [
        TrainedOn(path=str(folder), run_id=str(manifests[folder].get("run_id", "")), how=how[folder])
        for folder in manifests
        if folder in how
    ]


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a training; nothing where it is damaged, so that nobody knows its start."""
    try:
        return manifest_of(folder)[0]
    except StaleArtifact as error:
        logger.warning("%s; it may have learned from anything", error)
        return {}


def _own(folder: Path, sample_ids: frozenset[str]) -> str | None:
    try:
        check_files(folder, manifest_of(folder)[1], (TRAINED_IDS,))
    except StaleArtifact:
        return "unknown"
    trained = (folder / TRAINED_IDS).read_text(encoding="utf-8").split("\n")
    return None if sample_ids.isdisjoint(trained) else "sample"


def _later(manifests: dict[Path, dict[str, Any]], learned: set[str]) -> list[Path]:
    return [
        folder
        for folder, manifest in manifests.items()
        if manifest.get("start") in learned and folder.name not in learned
    ]
