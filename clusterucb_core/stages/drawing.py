"""What the draws of one selection work on, and the drawing itself under a policy and a budget.

Reads the artifacts `clustering`, `candidates`, `target` and feature shards; writes the shards of the samples
that are drawn. Draws of several policies, budgets and seeds may share one table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clusterucb_core.bandit.audits import Audit, audit_pulls
from clusterucb_core.bandit.costs import CostLimit
from clusterucb_core.bandit.policies import LinUcb
from clusterucb_core.bandit.pulls import RoundReport, pull_arms
from clusterucb_core.bandit.stopping import EarlyStop
from clusterucb_core.errors import TooManyExcluded
from clusterucb_core.features.gradients import UnusableSamples
from clusterucb_core.frozen import Frozen
from clusterucb_core.influence import takes_turns
from clusterucb_core.lm.tokens import token_counts
from clusterucb_core.records import ArtifactRef, Exclusion, FloatArray, IntArray
from clusterucb_core.seeds import child_rng
from clusterucb_core.selection import SelectionSettings, bandit_policy, cold_start_of, share_of
from clusterucb_core.stages.clusters import read_clustering
from clusterucb_core.stages.contexts import SideInformation, side_information, side_prior
from clusterucb_core.stages.drawn import Drawn, read_pulls
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
from clusterucb_core.stages.sides import ContextSource, token_exclusions
from clusterucb_core.workspace import StageSpec, Workspace, location


class Followed(Frozen):
    """The draws that a re-selection follows, at the same checkpoints, and how many fresh ones it may make.

    What they saw and the pool still holds is known, and takes nothing of the fresh budget.
    """

    draws: ArtifactRef
    fresh_samples: int


class DrawSpec(StageSpec):
    """One selection of one period.

    `spaces` are the pool's feature spaces at the checkpoints that count, with their `weights`; `first_space`
    is the one that was clustered; `context` is where the side information of `linucb` comes from. A
    re-selection has `followed` draws.
    """

    stage: str = "draws"
    version: int = 7
    settings: SelectionSettings
    target: ArtifactRef
    tokens: ArtifactRef
    candidates: ArtifactRef
    clustering: ArtifactRef | None = None
    first_space: FeatureSpace | None = None
    context: ContextSource | None = None
    spaces: tuple[FeatureSpace, ...] = ()
    weights: tuple[float, ...] = ()
    period: int
    seed: int
    max_excluded_fraction: float
    followed: Followed | None = None
    run_id: str = location(default="")  # pyright: ignore[reportAssignmentType]


@dataclass(frozen=True)
class Arms:
    """The arms of a selection, each in its drawing order, and how many samples at its front are known."""

    rows: list[IntArray]
    known: list[int]

    @property
    def n_left(self) -> int:
        """How many samples may be drawn."""
        return sum(len(arm) for arm in self.rows) - sum(self.known)


@dataclass(frozen=True)
class DrawTable:
    """What a bandit draws from: the clustered samples with their scores, clusters [n] and side information.

    It belongs to one period; draws of several policies, budgets and seeds may share it. `prior` [n, s] is a
    guess of the scores, there where columns take turns and where there is side information. `tokens` [n] are
    what a gradient of each costs.
    """

    book: ScoreBook
    clusters: IntArray
    exclusions: tuple[Exclusion, ...]
    side: SideInformation | None
    prior: FloatArray | None
    tokens: FloatArray


def open_table(spec: DrawSpec, workspace: Workspace) -> DrawTable:
    """Return what the draws of a period work on; the side information only where its policy asks for it."""
    assert spec.first_space is not None, "a clustering belongs to a feature space"
    clustered, labels = _clustered(spec)
    usable, exclusions = _usable_arms(spec, spec.first_space, workspace)
    kept = [row for row, sample in enumerate(clustered) if sample in usable]
    book = score_book(spec, [clustered[row] for row in kept], workspace)
    counts = token_counts(spec.tokens)
    tokens = np.array([counts[sample] for sample in book.sample_ids], dtype=np.float64)
    if spec.settings.policy == "linucb":
        side = _side_information(spec, book, workspace)
        return DrawTable(book, labels[kept], exclusions, side, side.prior, tokens)
    prior = _turns_prior(spec, book, workspace)
    return DrawTable(book, labels[kept], exclusions, None, prior, tokens)


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
        arms = _arms(spec, table, lost)
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
        unspent_samples=_budget(spec, arms) + sum(arms.known) - len(log.samples),
    )


def usable_ids(
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


def score_book(spec: DrawSpec, ids: list[str], workspace: Workspace) -> ScoreBook:
    """Return the scores of samples that are known at the checkpoints of a selection."""
    target = read_target_gradients(spec.target, spec.spaces, workspace, aggregate=spec.settings.aggregate)
    return open_book(spec.spaces, spec.weights, target, sample_ids=ids, workspace=workspace)


def _budget(spec: DrawSpec, arms: Arms) -> int:
    """Return how many samples may be drawn, those of the audit included."""
    share = share_of(spec.settings.budget_fraction, pool_size(spec.candidates))
    return min(arms.n_left, spec.followed.fresh_samples if spec.followed else share)


def _audit_samples(spec: DrawSpec, budget_samples: int) -> int:
    """Return how many of the draws are an audit: a share of the pool, or the same part of a fresh budget."""
    settings = spec.settings
    if spec.followed is None:
        return share_of(settings.audit_fraction, pool_size(spec.candidates))
    return share_of(settings.audit_fraction / settings.budget_fraction, budget_samples)


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
    arms: Arms,
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
    prior = None
    if side is not None:
        prior = np.concatenate([guesses_of(guess, settings.aggregate) for guess in side.priors], axis=1)
    budget, k = _budget(spec, arms), share_of(settings.top_fraction, n)
    audit_samples = _audit_samples(spec, budget)
    costs = CostLimit(table.tokens, settings.cost_limit, k, draws=budget)
    log = pull_arms(
        arms.rows,
        reward,
        policy=policy,
        budget_samples=budget - audit_samples,
        # what is known stands in for a cold start; an arm of which nothing is known gives one draw
        cold_start_fraction=0.0 if spec.followed else cold_start_of(settings),
        round_samples=settings.round_samples,
        context=context,
        prior=prior,
        rng=child_rng(spec.seed, "policy", str(spec.period)),
        on_round=on_round,
        stop=EarlyStop(k, settings.early_stop),
        costs=costs,
        known=arms.known,
    )
    if audit_samples == 0:
        return Audit(log, n_uniform=0, n_left=0)
    return audit_pulls(
        arms.rows,
        reward,
        log=log,
        policy=policy,
        audit_samples=audit_samples,
        round_samples=settings.round_samples,
        context=context,
        prior=prior,
        rng=child_rng(spec.seed, "audit", str(spec.period)),
        costs=costs,
    )


def _side_information(spec: DrawSpec, book: ScoreBook, workspace: Workspace) -> SideInformation:
    assert spec.context is not None, "linucb draws by side information"
    return side_information(
        spec.context, book.sample_ids, spec.target, workspace=workspace, aggregate=spec.settings.aggregate
    )


def _turns_prior(spec: DrawSpec, book: ScoreBook, workspace: Workspace) -> FloatArray | None:
    if not takes_turns(spec.settings.aggregate):
        return None
    assert spec.context is not None, "columns that take turns are scaled by a prior"
    return side_prior(
        spec.context, book.sample_ids, spec.target, workspace=workspace, aggregate=spec.settings.aggregate
    )


def _arms(spec: DrawSpec, table: DrawTable, lost: dict[int, str]) -> Arms:
    """Return the clusters as arms: what is known in front, then the others in an order of chance."""
    before = set[str]() if spec.followed is None else set(read_pulls(spec.followed.draws)["sample_id"])
    ids = table.book.sample_ids
    arms = Arms([], [])
    for cluster in range(int(table.clusters.max()) + 1):
        rows = np.flatnonzero(table.clusters == cluster)
        order = child_rng(spec.seed, f"arms of period {spec.period}", str(cluster)).permutation(rows)
        usable = [int(row) for row in order if row not in lost]
        known = [row for row in usable if ids[row] in before]
        rest = [row for row in usable if ids[row] not in before]
        arms.rows.append(np.array([*known, *rest], dtype=np.int64))
        arms.known.append(len(known))
    return arms


def _usable_arms(
    spec: DrawSpec, clustered: FeatureSpace, workspace: Workspace
) -> tuple[set[str], tuple[Exclusion, ...]]:
    """Leave out what cannot be clustered, or has no side information that the policy reads."""
    ids = candidate_ids(spec.candidates)
    if spec.context is None:
        usable, exclusions = usable_ids(spec, ids, workspace, (clustered,))
        return set(usable), exclusions
    lost = token_exclusions(spec.context, ids, max_excluded_fraction=spec.max_excluded_fraction)
    out = {exclusion.sample_id for exclusion in lost}
    spaces = tuple(dict.fromkeys((clustered, *spec.context.spaces)))
    usable, exclusions = usable_ids(spec, [sample for sample in ids if sample not in out], workspace, spaces)
    return set(usable), (*lost, *exclusions)


def _check_lost(spec: DrawSpec, lost: dict[int, str], n: int) -> None:
    if len(lost) > spec.max_excluded_fraction * n:
        reasons = ", ".join(sorted(set(lost.values())))
        raise TooManyExcluded(
            f"{len(lost)} of {n} samples lost their gradient while being drawn ({reasons}), above "
            f"features.max_excluded_fraction={spec.max_excluded_fraction}; mend the pool or raise the limit"
        )
