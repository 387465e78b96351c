"""One selection: the bandit's draws, or all of the pool, or chance, and the k best of what was seen.

Reads the artifacts `clustering`, `candidates`, `target` and feature shards; writes the artifact `draws` and
the shards of the samples that are drawn.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.bandit.audits import Audit, audit_pulls
from clusterucb_core.bandit.policies import LinUcb
from clusterucb_core.bandit.pulls import RoundReport, pull_arms
from clusterucb_core.bandit.stopping import EarlyStop
from clusterucb_core.errors import BudgetError, InvalidPool, TooManyExcluded
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.features.gradients import UnusableSamples
from clusterucb_core.influence import NO_COLUMN, Aggregate, Choice, select_top, takes_turns
from clusterucb_core.lm.devices import leased_device
from clusterucb_core.records import ArtifactRef, Exclusion, FloatArray, IntArray
from clusterucb_core.seeds import child_rng
from clusterucb_core.selection import SelectionSettings, bandit_policy, cold_start_of, is_bandit, share_of
from clusterucb_core.stages.certificates import certificate_of
from clusterucb_core.stages.clusters import read_clustering
from clusterucb_core.stages.contexts import SideInformation, gradient_context, gradient_prior
from clusterucb_core.stages.drawn import NO_CLUSTER, Drawn, write_drawn
from clusterucb_core.stages.features import usable_samples
from clusterucb_core.stages.intake import candidate_ids, pool_size
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.stages.rewards import RewardView, guesses_of, rewards_of
from clusterucb_core.stages.scores import (
    BookFiller,
    ScoreBook,
    open_book,
    read_target_gradients,
    total_scores,
)
from clusterucb_core.stages.separation import SeparationCheck, check_separation
from clusterucb_core.workspace import StageSpec, Workspace, location, resumable, stage_key, written

logger = logging.getLogger(__name__)


class DrawSpec(StageSpec):
    """One selection of one period.

    `spaces` are the pool's feature spaces at the checkpoints that count, with their `weights`; `first_space`
    is the one that was clustered.
    """

    stage: str = "draws"
    version: int = 4
    settings: SelectionSettings
    target: ArtifactRef
    tokens: ArtifactRef
    candidates: ArtifactRef
    clustering: ArtifactRef | None = None
    first_space: FeatureSpace | None = None
    spaces: tuple[FeatureSpace, ...] = ()
    weights: tuple[float, ...] = ()
    period: int
    seed: int
    max_excluded_fraction: float
    run_id: str = location(default="")  # pyright: ignore[reportAssignmentType]


@dataclass(frozen=True)
class DrawTable:
    """What a bandit draws from: the clustered samples with their scores, clusters [n] and side information.

    It belongs to one period; draws of several policies, budgets and seeds may share it. `prior` [n, s] is a
    guess of the scores, there where columns take turns and where there is side information.
    """

    book: ScoreBook
    clusters: IntArray
    exclusions: tuple[Exclusion, ...]
    side: SideInformation | None
    prior: FloatArray | None


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


def open_table(spec: DrawSpec, workspace: Workspace) -> DrawTable:
    """Return what the draws of a period work on; the side information only where its policy asks for it."""
    assert spec.first_space is not None, "a clustering belongs to a feature space"
    first = spec.first_space
    ids, clusters = _clustered(spec)
    _, exclusions = _usable(spec, candidate_ids(spec.candidates), workspace, (first,))
    book = _book(spec, ids, workspace)
    where: dict[str, Any] = {"weights": book.weights, "workspace": workspace}
    side = gradient_context(first, ids, book.target, **where) if spec.settings.policy == "linucb" else None
    if side is not None:
        return DrawTable(book, clusters, exclusions, side, side.prior)
    turns = takes_turns(spec.settings.aggregate)
    prior = gradient_prior(first, ids, book.target, **where) if turns else None
    return DrawTable(book, clusters, exclusions, None, prior)


def draw_from(
    table: DrawTable,
    spec: DrawSpec,
    filler: BookFiller,
    *,
    on_round: Callable[[RoundReport], None] | None = None,
) -> Drawn:
    """Draw under the budget; what the table's book knows already is not computed again.

    Args:
        table: what the draws work on.
        spec: policy, budget and seed.
        filler: computes what the book lacks.
        on_round: called after every round.

    Raises:
        BudgetError: the budget is below the cold start or above the pool.
        TooManyExcluded: more samples lost their gradient than the configuration allows.
    """
    book, lost = table.book, dict[int, str]()
    while True:
        arms = _arms(spec, table.clusters, lost)
        try:
            audit = _pull(table, spec, filler, arms=arms, on_round=on_round)
            break
        except UnusableSamples as error:
            # what was computed stays in the store, so the repeat without these samples is a replay
            lost.update(zip(error.indices, error.reasons, strict=True))
            _check_lost(spec, lost, len(book.sample_ids))
    log = audit.log
    late = tuple(
        Exclusion(book.sample_ids[row], "selection", reason, f"period {spec.period}")
        for row, reason in lost.items()
    )
    return Drawn(
        book.sample_ids,
        log.samples,
        total_scores(book, log.samples),
        book.target.subtasks,
        table.clusters,
        log,
        table.exclusions + late,
        budget_samples=_budget(spec, arms),
        n_uniform=audit.n_uniform,
        n_left=audit.n_left,
        unspent_samples=_budget(spec, arms) - len(log.samples),
    )


def _random_choice(spec: DrawSpec, k: int) -> tuple[Drawn, Choice]:
    ids = candidate_ids(spec.candidates)
    if len(ids) < k:
        raise InvalidPool(f"{len(ids)} samples can be used, but {k} are to be selected; lower top_fraction")
    chosen = chance_rows(spec, len(ids), k)
    seen, scores = np.zeros(0, dtype=np.int64), np.zeros((0, 0))
    drawn = Drawn(ids, seen, scores, (), np.full(len(ids), NO_CLUSTER), None, (), 0)
    return drawn, Choice(chosen, np.full(k, np.nan), np.full(k, NO_COLUMN))


def _all(spec: DrawSpec, workspace: Workspace) -> Drawn:
    ids, exclusions = _usable(spec, candidate_ids(spec.candidates), workspace, spec.spaces)
    book = _book(spec, ids, workspace)
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
    return draw_from(open_table(spec, workspace), spec, filler, on_round=_log_round)


def _budget(spec: DrawSpec, arms: list[IntArray]) -> int:
    """Return how many samples may be drawn, those of the audit included."""
    share = share_of(spec.settings.budget_fraction, pool_size(spec.candidates))
    return min(sum(len(arm) for arm in arms), share)


def _clustered(spec: DrawSpec) -> tuple[list[str], IntArray]:
    """Return the clustered samples with their clusters, less those that only other targets may draw."""
    assert spec.clustering is not None, "a cluster policy draws from a clustering"
    ids, clustering = read_clustering(spec.clustering)
    drawable = set(candidate_ids(spec.candidates))
    rows = [row for row, sample in enumerate(ids) if sample in drawable]
    return [ids[row] for row in rows], clustering.labels[rows]


def _pull(
    table: DrawTable,
    spec: DrawSpec,
    filler: BookFiller,
    *,
    arms: list[IntArray],
    on_round: Callable[[RoundReport], None] | None,
) -> Audit:
    def reward(rows: IntArray) -> FloatArray:
        filler.fill(table.book, rows)
        return rewards_of(view, rows, total_scores(table.book, rows))

    settings, n = spec.settings, pool_size(spec.candidates)
    policy = bandit_policy(settings)
    side = table.side if isinstance(policy, LinUcb) else None
    view = RewardView(settings.aggregate, table.prior)
    context = None if side is None else side.context
    prior = None if side is None else guesses_of(side.prior, settings.aggregate)
    audit_samples = share_of(settings.audit_fraction, n)
    log = pull_arms(
        arms,
        reward,
        policy=policy,
        budget_samples=_budget(spec, arms) - audit_samples,
        cold_start_fraction=cold_start_of(settings),
        round_samples=settings.round_samples,
        context=context,
        prior=prior,
        rng=child_rng(spec.seed, "policy", str(spec.period)),
        on_round=on_round,
        stop=EarlyStop(share_of(settings.top_fraction, n), settings.early_stop),
    )
    if audit_samples == 0:
        return Audit(log, n_uniform=0, n_left=0)
    return audit_pulls(
        arms,
        reward,
        log=log,
        policy=policy,
        audit_samples=audit_samples,
        round_samples=settings.round_samples,
        context=context,
        prior=prior,
        rng=child_rng(spec.seed, "audit", str(spec.period)),
    )


def _log_round(report: RoundReport) -> None:
    logger.info(
        "round %d: %d of %d gradients drawn, %d arms open, mean reward %.4f",
        report.round,
        report.spent_samples,
        report.budget_samples,
        report.open_arms,
        float(np.mean(report.rewards)),
    )


def _arms(spec: DrawSpec, clusters: IntArray, lost: dict[int, str]) -> list[IntArray]:
    arms: list[IntArray] = []
    for cluster in range(int(clusters.max()) + 1):
        rows = np.flatnonzero(clusters == cluster)
        order = child_rng(spec.seed, f"arms of period {spec.period}", str(cluster)).permutation(rows)
        arms.append(np.array([row for row in order if row not in lost], dtype=np.int64))
    return arms


def _usable(
    spec: DrawSpec, sample_ids: list[str], workspace: Workspace, spaces: tuple[FeatureSpace, ...]
) -> tuple[list[str], tuple[Exclusion, ...]]:
    """Leave out what any of the spaces is known to exclude."""
    exclusions: list[Exclusion] = []
    for space in spaces:
        sample_ids, excluded = usable_samples(
            space, sample_ids, workspace=workspace, max_excluded_fraction=spec.max_excluded_fraction
        )
        exclusions.extend(excluded)
    return sample_ids, tuple(exclusions)


def _check_lost(spec: DrawSpec, lost: dict[int, str], n: int) -> None:
    if len(lost) > spec.max_excluded_fraction * n:
        reasons = ", ".join(sorted(set(lost.values())))
        raise TooManyExcluded(
            f"{len(lost)} of {n} samples lost their gradient while being drawn ({reasons}), above "
            f"features.max_excluded_fraction={spec.max_excluded_fraction}; mend the pool or raise the limit"
        )


def _book(spec: DrawSpec, ids: list[str], workspace: Workspace) -> ScoreBook:
    target = read_target_gradients(spec.target, spec.spaces, workspace, aggregate=spec.settings.aggregate)
    return open_book(spec.spaces, spec.weights, target, sample_ids=ids, workspace=workspace)


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
