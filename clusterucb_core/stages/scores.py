"""Scores of pool samples on the subtasks of a target, over one checkpoint or several.

Reads feature shards and the artifact `target`; computes and writes the shards that are missing.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.features.gradients import UnusableSamples
from clusterucb_core.features.store import read_shard, remaining_shard
from clusterucb_core.influence import Aggregate, subtask_scores
from clusterucb_core.lm.loading import resolve_device
from clusterucb_core.lm.tokens import open_tokens
from clusterucb_core.pacing import Pace, advance
from clusterucb_core.records import ArtifactRef, FloatArray, IntArray
from clusterucb_core.stages.features import (
    GradientSource,
    compute_shard,
    load_source,
    open_store,
    plan_shards_of,
    read_features,
    switch_source,
)
from clusterucb_core.stages.intake import read_target
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.targets.catalog import subtask_index
from clusterucb_core.workspace import Workspace, stage_key

logger = logging.getLogger(__name__)

BLOCK_SAMPLES = 8192
# One product of scores: few rows, so that a short round wastes little, and small enough not to be split.
SCORE_ROWS = 256
SCORE_VALUES = 2**22


@dataclass(frozen=True)
class TargetGradients:
    """Unit gradients [v, d] of the validation rows at each checkpoint, and the subtask [v] of each row.

    Where validation rows take turns in selecting, each is a subtask of its own: `row 1`, `row 2`, ...
    """

    by_checkpoint: tuple[FloatArray, ...]
    subtask: IntArray
    subtasks: tuple[str, ...]


@dataclass
class ScoreBook:
    """Scores [n, s] of samples at each checkpoint, NaN where not known yet; filled as samples are drawn.

    `unusable` holds, for each checkpoint, the rows known to have no usable gradient, with reasons.
    """

    spaces: tuple[FeatureSpace, ...]
    weights: tuple[float, ...]
    target: TargetGradients
    sample_ids: list[str]
    scores: list[NDArray[np.float64]]
    unusable: list[dict[int, str]]


def plain_space(space: FeatureSpace) -> FeatureSpace:
    """Return the space of target gradients that belongs to a space of pool features."""
    return space.model_copy(update={"kind": "plain"})


def read_target_gradients(
    target_ref: ArtifactRef,
    spaces: Sequence[FeatureSpace],
    workspace: Workspace,
    *,
    aggregate: Aggregate = "max",
) -> TargetGradients:
    """Return the target's gradients at the checkpoints of the given pool spaces.

    Args:
        target_ref: the target.
        spaces: the pool's feature spaces at the checkpoints.
        workspace: where the gradients lie.
        aggregate: what selects; `round_robin_validation` makes each validation row a subtask of its own.

    Raises:
        InvalidTarget: a validation row has no usable gradient.
    """
    own = [plain_space(space) for space in spaces]
    return read_target_features(target_ref, own, workspace, aggregate=aggregate)


def read_target_features(
    target_ref: ArtifactRef, spaces: Sequence[FeatureSpace], workspace: Workspace, *, aggregate: Aggregate
) -> TargetGradients:
    """Return the features of the target's validation rows in spaces of the target's own.

    Args:
        target_ref: the target.
        spaces: spaces that hold features of its rows.
        workspace: where the features lie.
        aggregate: as in `read_target_gradients`.

    Raises:
        InvalidTarget: a validation row has no usable feature.
    """
    target = read_target(target_ref)
    subtasks, subtask = subtask_index(target)
    if aggregate == "round_robin_validation":
        subtask = np.arange(len(target.validation))
        subtasks = [f"row {row + 1}" for row in subtask]
    ids = [row.row_id for row in target.validation]
    for space in spaces:
        excluded = open_store(space, workspace).excluded
        what = "gradient" if space.has_gradients else "forward-only feature"
        for row, sample in enumerate(ids):
            if sample in excluded:
                reason = excluded[sample]
                raise InvalidTarget(
                    f"validation row {row + 1} of target {target.name!r} has no {what}: {reason.reason} "
                    f"({reason.detail}); mend or remove the row"
                )
    gradients = tuple(read_features(space, ids, workspace) for space in spaces)
    return TargetGradients(gradients, subtask, tuple(subtasks))


def open_book(
    spaces: Sequence[FeatureSpace],
    weights: Sequence[float],
    target: TargetGradients,
    *,
    sample_ids: list[str],
    workspace: Workspace,
) -> ScoreBook:
    """Return the scores of samples, with those filled in whose features are in the store."""
    shape = (len(sample_ids), len(target.subtasks))
    scores = [np.full(shape, np.nan) for _ in spaces]
    unusable: list[dict[int, str]] = []
    for index, space in enumerate(spaces):
        store = open_store(space, workspace)
        excluded, all_known = store.excluded, store.known
        unusable.append(
            {row: excluded[sample].reason for row, sample in enumerate(sample_ids) if sample in excluded}
        )
        known = np.array(
            [row for row, sample in enumerate(sample_ids) if sample in all_known], dtype=np.int64
        )
        pace = Pace(logger, "scores of known features", "samples", len(known))
        for start in range(0, len(known), BLOCK_SAMPLES):
            rows = known[start : start + BLOCK_SAMPLES]
            features = store.read([sample_ids[row] for row in rows])
            scores[index][rows] = _scores(features, target, index)
            advance(pace, len(rows))
    return ScoreBook(tuple(spaces), tuple(weights), target, sample_ids, scores, unusable)


def total_scores(book: ScoreBook, rows: IntArray) -> FloatArray:
    """Return the scores [m, s] of rows, summed over checkpoints with their weights."""
    parts = [weight * scores[rows] for weight, scores in zip(book.weights, book.scores, strict=True)]
    return np.sum(parts, axis=0)


def usable_rows(book: ScoreBook) -> IntArray:
    """Return the rows of a book that are not known to lack a usable gradient, in their order."""
    unusable = {row for rows in book.unusable for row in rows}
    return np.array([row for row in range(len(book.sample_ids)) if row not in unusable], dtype=np.int64)


class BookFiller:
    """Computes what a score book lacks, with one loaded model that goes from checkpoint to checkpoint."""

    def __init__(
        self, tokens: ArtifactRef, *, workspace: Workspace, execution: ExecutionSettings, run_id: str
    ) -> None:
        self._table = open_tokens(tokens)
        self._workspace = workspace
        self._execution = execution
        self._run_id = run_id
        self._source: GradientSource | None = None

    def fill(self, book: ScoreBook, rows: IntArray) -> None:
        """Compute and store the gradients of the given rows that are not known yet.

        Raises:
            UnusableSamples: rows whose gradient cannot be used, with their reasons.
        """
        for index in range(len(book.spaces)):
            lacking = [int(row) for row in rows if np.isnan(book.scores[index][row, 0])]
            untried = [row for row in lacking if row not in book.unusable[index]]
            if untried:
                self._fill_checkpoint(book, index, rows, untried=untried)
            failed = [row for row in lacking if row in book.unusable[index]]
            if failed:
                raise UnusableSamples(tuple(failed), tuple(book.unusable[index][row] for row in failed))

    def _fill_checkpoint(self, book: ScoreBook, index: int, rows: IntArray, *, untried: list[int]) -> None:
        space = book.spaces[index]
        place = {book.sample_ids[row]: row for row in untried}
        # batches are planned over all that was asked for, so that a run that was killed goes on with the same
        asked = [book.sample_ids[int(row)] for row in rows]
        for planned in plan_shards_of(space, self._table, asked, self._execution):
            shard = remaining_shard(stage_key(space), planned, place.keys())
            if shard is None:
                continue
            content = read_shard(compute_shard(self._at(space), shard, self._workspace, run_id=self._run_id))
            found = [place[sample] for sample in content.sample_ids]
            book.scores[index][found] = _scores(content.features, book.target, index)
            book.unusable[index].update({place[lost.sample_id]: lost.reason for lost in content.excluded})

    def _at(self, space: FeatureSpace) -> GradientSource:
        if self._source is None:
            self._source = load_source(space, self._table, resolve_device(self._execution.device))
        self._source = switch_source(self._source, space)
        return self._source


def _scores(features: FloatArray, target: TargetGradients, index: int) -> NDArray[np.float64]:
    """Return the scores [n, s] of features at one checkpoint, the same bits whatever is scored beside them.

    A matrix product rounds by its shape and its threads: all products here have the same number of rows.
    """
    n, width = features.shape
    rows = max(1, min(SCORE_ROWS, SCORE_VALUES // max(1, width)))
    padded = np.zeros((-(-n // rows) * rows, width), dtype=features.dtype)
    padded[:n] = features
    scores = np.empty((len(padded), len(target.subtasks)))
    with threadpool_limits(limits=1, user_api="blas"):
        for start in range(0, len(padded), rows):
            block = padded[start : start + rows]
            scores[start : start + rows] = subtask_scores(block, target.by_checkpoint[index], target.subtask)
    return scores[:n]
