"""One selection: the bandit's draws, or all of the pool, or chance, and the k best of what was seen.

Reads the artifacts `clustering`, `candidates`, `target` and feature shards; writes the artifact `draws` and
the shards of the samples that are drawn.
"""

import logging
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.bandit.pulls import RoundReport
from clusterucb_core.errors import BudgetError, InvalidPool
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.influence import NO_COLUMN, Aggregate, Choice, select_top
from clusterucb_core.lm.devices import leased_device
from clusterucb_core.pacing import Pace, advance, finish
from clusterucb_core.records import ArtifactRef, IntArray
from clusterucb_core.seeds import child_rng
from clusterucb_core.selection import is_bandit, share_of
from clusterucb_core.stages.certificates import certificate_of
from clusterucb_core.stages.clusters import read_clustering
from clusterucb_core.stages.drawing import DrawSpec, draw_from, open_table, score_book, usable_ids
from clusterucb_core.stages.drawn import NO_CLUSTER, Drawn, write_drawn
from clusterucb_core.stages.intake import candidate_ids, pool_size
from clusterucb_core.stages.scores import (
    BookFiller,
    total_scores,
)
from clusterucb_core.stages.separation import SeparationCheck, check_separation
from clusterucb_core.workspace import Workspace, resumable, stage_key, written

logger = logging.getLogger(__name__)


@resumable
def run_draws(spec: DrawSpec, workspace: Workspace, execution: ExecutionSettings) -> ArtifactRef:
    """Draw and select; a bandit computes the gradients of what it draws and of nothing else.

    Raises:
        BudgetError: the budget is below the cold start or above the pool.
        InvalidPool: fewer samples can be used than are to be selected.
    """
    k = selected_samples(spec)
    if spec.settings.policy == "random":
        drawn, choice = _random_choice(spec, k)
    else:
        drawn = (
            _draws_on_lease(spec, workspace, execution)
            if is_bandit(spec.settings.policy)
            else _all(spec, workspace)
        )
        choice = best_drawn(drawn, k, spec.settings.aggregate)
    return _write(spec, workspace, drawn, choice, execution)


def selected_samples(spec: DrawSpec) -> int:
    """Return k, how many samples a selection holds.

    Raises:
        BudgetError: none.
    """
    k = share_of(spec.settings.top_fraction, pool_size(spec.candidates))
    if k < 1:
        raise BudgetError(
            f"selection.top_fraction={spec.settings.top_fraction} of {pool_size(spec.candidates)} samples "
            "selects none; raise it or give a larger pool"
        )
    return k


def chance_rows(spec: DrawSpec, n: int, k: int) -> IntArray:
    """Return k of n rows at random, as the policy `random` chooses them."""
    return child_rng(spec.seed, "random selection", str(spec.period)).permutation(n)[:k]


def best_drawn(drawn: Drawn, k: int, aggregate: Aggregate) -> Choice:
    """Return the k samples that an aggregate puts first among those that were seen.

    Raises:
        InvalidPool: fewer were seen.
    """
    if len(drawn.seen) < k:
        raise InvalidPool(
            f"{len(drawn.seen)} samples have an influence, but {k} are to be selected; lower top_fraction"
        )
    choice = select_top(drawn.scores, k, aggregate=aggregate)
    return replace(choice, rows=drawn.seen[choice.rows])


def _random_choice(spec: DrawSpec, k: int) -> tuple[Drawn, Choice]:
    ids = candidate_ids(spec.candidates)
    if len(ids) < k:
        raise InvalidPool(f"{len(ids)} samples can be used, but {k} are to be selected; lower top_fraction")
    chosen = chance_rows(spec, len(ids), k)
    seen, scores = np.zeros(0, dtype=np.int64), np.zeros((0, 0))
    drawn = Drawn(ids, seen, scores, (), np.full(len(ids), NO_CLUSTER), None, (), 0)
    return drawn, Choice(chosen, np.full(k, np.nan), np.full(k, NO_COLUMN))


def _all(spec: DrawSpec, workspace: Workspace) -> Drawn:
    ids, exclusions = usable_ids(spec, candidate_ids(spec.candidates), workspace, spec.spaces)
    book = score_book(spec, ids, workspace)
    every = np.arange(len(ids))
    clusters = np.full(len(ids), NO_CLUSTER)
    if spec.clustering is not None:
        clustered, clustering = read_clustering(spec.clustering)
        label = dict(zip(clustered, clustering.labels.tolist(), strict=True))
        clusters = np.array([label.get(sample, NO_CLUSTER) for sample in ids])
    scores, subtasks = total_scores(book, every), book.target.subtasks
    return Drawn(ids, every, scores, subtasks, clusters, None, exclusions, len(ids))


def _draws_on_lease(spec: DrawSpec, workspace: Workspace, execution: ExecutionSettings) -> Drawn:
    with leased_device(execution.device) as device:
        return _bandit_draws(spec, workspace, execution.model_copy(update={"device": device}))


def _bandit_draws(spec: DrawSpec, workspace: Workspace, execution: ExecutionSettings) -> Drawn:
    filler = BookFiller(spec.tokens, workspace=workspace, execution=execution, run_id=spec.run_id)
    pace = Pace(logger, f"draws of period {spec.period}", "gradients", None)
    drawn = draw_from(open_table(spec, workspace), spec, filler, on_round=partial(_log_round, pace))
    finish(pace)  # an early stop leaves some of the budget
    return drawn


def _log_round(pace: Pace, report: RoundReport) -> None:
    pace.total = report.budget_samples
    reward = float(np.mean(report.rewards))
    detail = f"round {report.round}, {report.open_arms} arms open, mean reward {reward:.4f}"
    advance(pace, report.spent_samples - pace.done, detail)


def _write(
    spec: DrawSpec, workspace: Workspace, drawn: Drawn, choice: Choice, execution: ExecutionSettings
) -> ArtifactRef:
    rng = child_rng(spec.seed, "certificate", str(spec.period))
    certificate = certificate_of(drawn, choice, aggregate=spec.settings.aggregate, rng=rng)
    if certificate is not None:
        low, high = certificate.recall_low, certificate.recall_high
        logger.info("estimated recall %.2f (%.2f to %.2f)", certificate.recall, low, high)
    manifest: dict[str, Any] = {
        "n_candidates": len(drawn.sample_ids),
        "n_selected": len(choice.rows),
        "budget_samples": drawn.budget_samples,
        "unspent_samples": drawn.unspent_samples,
        "certificate": None if certificate is None else asdict(certificate),
        "separation": _separation(spec, drawn, workspace, execution),
        "exclusions": [asdict(exclusion) for exclusion in drawn.exclusions],
    }
    with new_artifact(workspace.artifacts, spec.stage, stage_key(spec), manifest) as folder:
        write_drawn(folder, drawn, choice)
    return written(spec, workspace)


def _separation(
    spec: DrawSpec, drawn: Drawn, workspace: Workspace, execution: ExecutionSettings
) -> dict[str, float | int] | None:
    """Check once a run, at the first checkpoint, whether the target separates the pool."""
    if spec.period > 1 or not spec.spaces:
        return None
    check = SeparationCheck(target=spec.target, space=spec.spaces[0], seed=spec.seed, run_id=spec.run_id)
    # a bandit that drew from a clustering of the first features has those of all samples
    ids = drawn.sample_ids
    if spec.first_space != check.space:
        ids = [ids[row] for row in drawn.seen]
    found = check_separation(check, ids, workspace=workspace, execution=execution)
    return None if found is None else asdict(found)
