"""The separation check of a run: gradients of the target's shuffled rows, and what they say of its own.

Reads the artifact `target` and feature shards; writes an artifact `tokens` and the feature shards of the
shuffled rows: plain gradients at the first checkpoint, as those of the target itself.
"""

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.lm.tokens import open_tokens, write_tokens
from clusterucb_core.records import ArtifactRef, FloatArray, Sample, Target
from clusterucb_core.seeds import child_rng
from clusterucb_core.separation import FEWEST_ROWS, Separation, chance_warning, separation, shuffles_per_row
from clusterucb_core.stages.features import open_store, plan_jobs, run_shard
from clusterucb_core.stages.intake import read_target
from clusterucb_core.stages.models import FeatureSpace, ModelRef, open_chat
from clusterucb_core.stages.scores import plain_space
from clusterucb_core.targets.shuffles import can_be_shuffled, shuffled_rows
from clusterucb_core.workspace import StageSpec, Workspace, resumable, stage_key, written

logger = logging.getLogger(__name__)

# What more samples would add to a correlation over this many is below what a shuffle moves it by.
MOST_SAMPLES, MOST_ROWS = 4096, 128


class ShuffledTokensSpec(StageSpec):
    """The tokens of a target's shuffled rows."""

    stage: str = "tokens"
    version: int = 1
    split: str = "shuffled"
    source: ArtifactRef
    model: ModelRef
    seed: int


@dataclass(frozen=True)
class SeparationCheck:
    """A target, and the pool's feature space at the checkpoint where it is checked."""

    target: ArtifactRef
    space: FeatureSpace
    seed: int
    run_id: str


def check_separation(
    check: SeparationCheck, sample_ids: list[str], *, workspace: Workspace, execution: ExecutionSettings
) -> Separation | None:
    """Return whether a target ranks samples of the pool better than its own words in another order would.

    Args:
        check: the target and where it is checked.
        sample_ids: samples that have features in the check's space.
        workspace: where features lie.
        execution: how gradients are computed.

    Returns:
        None for a target of fewer than four rows that can be shuffled.
    """
    target = read_target(check.target)
    shuffled = shuffled_samples(target, seed=check.seed)
    texts = _with_gradients(check, shuffled, workspace=workspace, execution=execution)
    if len(texts) < FEWEST_ROWS:
        logger.warning(
            "it was not checked whether target %r separates the pool: %d of its rows read differently when "
            "their words are shuffled, and %d are needed",
            target.name,
            len(texts),
            FEWEST_ROWS,
        )
        return None
    some = sample_ids
    if len(sample_ids) > MOST_SAMPLES:
        rows = child_rng(check.seed, "separation", "pool").permutation(len(sample_ids))[:MOST_SAMPLES]
        some = [sample_ids[row] for row in sorted(rows.tolist())]
    scores = _scores(check, texts, some, workspace=workspace)
    subtask = {row.row_id: row.subtask for row in target.validation}
    subtasks = np.unique([subtask[own] for own, *_ in texts], return_inverse=True)[1]
    found = separation(scores, subtasks, rng=child_rng(check.seed, "separation"))
    if (warning := chance_warning(found.p)) is not None:
        logger.warning("target %r: %s", target.name, warning)
    return found


def shuffled_samples(target: Target, *, seed: int) -> dict[str, list[Sample]]:
    """Return the shuffled rows that stand beside a target's own, by the id of the row.

    Of a target with more than `MOST_ROWS` rows that many are taken by chance.
    """
    rows = [row for row in target.validation if can_be_shuffled(row)]
    order = child_rng(seed, "separation", "rows").permutation(len(rows))[:MOST_ROWS]
    some = replace(target, validation=tuple(rows[row] for row in sorted(order.tolist())))
    return shuffled_rows(some, shuffles=shuffles_per_row(len(some.validation)), seed=seed)


@resumable
def run_shuffled_tokens(spec: ShuffledTokensSpec, workspace: Workspace) -> ArtifactRef:
    """Tokenize the shuffled rows of a target."""
    shuffled = shuffled_samples(read_target(spec.source), seed=spec.seed)
    every = [sample for samples in shuffled.values() for sample in samples]
    write_tokens(
        workspace.artifacts,
        stage_key(spec),
        every,
        open_chat(spec.model),
        max_length=spec.model.settings.max_length,
    )
    return written(spec, workspace)


def _with_gradients(
    check: SeparationCheck,
    shuffled: dict[str, list[Sample]],
    *,
    workspace: Workspace,
    execution: ExecutionSettings,
) -> list[tuple[str, ...]]:
    """Compute the gradients that are missing; return each row's id with its shuffles', where all have one."""
    if len(shuffled) < FEWEST_ROWS:
        return []
    space = plain_space(check.space)
    spec = ShuffledTokensSpec(source=check.target, model=space.model, seed=check.seed)
    tokens = run_shuffled_tokens(spec, workspace)
    ids = open_tokens(tokens).sample_ids
    jobs = plan_jobs(space, tokens, ids, workspace=workspace, execution=execution, run_id=check.run_id)
    for job in jobs:
        run_shard(job, workspace, execution)
    known = open_store(space, workspace).known
    texts = [(own, *(sample.sample_id for sample in samples)) for own, samples in shuffled.items()]
    return [family for family in texts if known.issuperset(family)]


def _scores(
    check: SeparationCheck, texts: list[tuple[str, ...]], sample_ids: list[str], *, workspace: Workspace
) -> FloatArray:
    """Return the scores [v, 1 + m, n] of samples on each text of each row."""
    ids = [text for family in texts for text in family]
    gradients = open_store(plain_space(check.space), workspace).read(ids)
    blocks: list[NDArray[np.float32]] = []
    with threadpool_limits(limits=1, user_api="blas"):  # how a product is divided moves its last bits
        for block in open_store(check.space, workspace).iter_blocks(sample_ids):
            blocks.append(gradients @ block.T)
    return np.concatenate(blocks, axis=1).reshape(len(texts), -1, len(sample_ids))
