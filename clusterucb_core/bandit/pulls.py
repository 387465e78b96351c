"""The pull loop: cold start, then rounds of draws under a policy until the budget is spent to the sample.

An early stop may end it sooner.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from clusterucb_core.bandit.arms import (
    ArmState,
    Float64Array,
    Int64Array,
    add_rewards,
    arm_stds,
    fresh_arms,
    ranked_rewards,
)
from clusterucb_core.bandit.costs import CostLimit, Seen, best_within
from clusterucb_core.bandit.drawable import (
    Drawable,
    arms_of,
    checked_scores,
    earlier_draws,
    gather_arms,
    largest_scores,
)
from clusterucb_core.bandit.outlooks import Outlook, best_open, expectations, observe, open_outlook
from clusterucb_core.bandit.policies import LinUcb, Policy, bounded_draws
from clusterucb_core.bandit.stopping import EarlyStop, expected_in_arms, expected_in_samples
from clusterucb_core.errors import BudgetError
from clusterucb_core.records import FloatArray, IntArray

logger = logging.getLogger(__name__)

Reward = Callable[[IntArray], FloatArray]
PullKind = Literal["known", "cold_start", "draw", "audit"]

# One arm gives at most this part of a round, rounded up, so that stale bounds cannot empty the best arm.
_ARM_PARTS_PER_ROUND = 8


@dataclass(frozen=True, slots=True)
class PullLog:
    """Every pull in drawing order: what was known, then the budget, or what was drawn at an early stop.

    `bounds`, `means` and `stds` are the arm's as they stood before the pull's round (NaN where there was no
    reward yet), `lefts` the samples left in the arm just before the pull, it included. `rounds` is 0 for what
    was known and for the cold start, then 1, 2, ...; `kinds` holds 'known', 'cold_start' or 'draw'.
    """

    samples: IntArray
    arms: IntArray
    rewards: FloatArray
    rounds: IntArray
    kinds: np.ndarray
    bounds: FloatArray
    means: FloatArray
    stds: FloatArray
    lefts: IntArray


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One finished round: its pulls [m], the budget spent so far, and how many arms are still open."""

    round: int
    kind: PullKind
    samples: IntArray
    arms: IntArray
    rewards: FloatArray
    spent_samples: int
    budget_samples: int
    open_arms: int


@dataclass(frozen=True, slots=True)
class _Decision:
    """The samples [m] of one round with their arms, the bound that chose each, what was left in its arm."""

    round: int
    kind: PullKind
    samples: Int64Array
    arms: IntArray
    bounds: FloatArray
    lefts: Int64Array


@dataclass(frozen=True, slots=True)
class _Run:
    """What one call of `pull_arms` works on."""

    pool: Drawable
    state: ArmState
    outlook: Outlook | None
    log: PullLog
    reward: Reward
    on_round: Callable[[RoundReport], None] | None
    costs: CostLimit | None
    known: int


def pull_arms(
    arms: Sequence[IntArray],
    reward: Reward,
    *,
    policy: Policy | LinUcb,
    budget_samples: int,
    rng: np.random.Generator,
    cold_start_fraction: float = 0.05,
    round_samples: int = 1,
    context: FloatArray | None = None,
    prior: FloatArray | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
    stop: EarlyStop | None = None,
    costs: CostLimit | None = None,
    known: Sequence[int] | IntArray | None = None,
) -> PullLog:
    """Draw exactly `budget_samples` samples from the arms, unless told when to stop, and return every pull.

    Args:
        arms: k int arrays of sample indices, each in its drawing order; an arm may be empty.
        reward: int array [m] of sample indices to float array [m], or [m, s]: a score per subtask, of which
            the largest counts. Called once per round, the cold start being one round.
        policy: chooses the arms after the cold start; `LinUcb` has none, and chooses samples.
        budget_samples: rewards to compute, cold start included.
        rng: source of all randomness.
        cold_start_fraction: part of every arm that is drawn first, in [0, 1]; 0 means no cold start.
        round_samples: draws decided on one set of bounds; 1 is the paper's rule.
        context: side information of every sample of the pool, [n, f]; `LinUcb` needs it, others ignore it.
        prior: a cheap guess of the reward, [n] or [n, s]; it orders the first round of `LinUcb` and is side
            information after that.
        on_round: called after every round.
        stop: ends the draws after the first round that leaves hardly anything to find, as `EarlyStop` says.
        costs: what samples cost, and how much the draws of `LinUcb` may; others ignore it.
        known: how many samples at the front of each arm have rewards that are known already, [k]: the policy
            sees them before it decides, and they take nothing of the budget. An arm that has as many as its
            cold start has no other.

    Returns:
        The pulls in drawing order.

    Raises:
        BudgetError: the budget is below the cold start or 1 (0 where rewards are known), or above the rest.
        ValueError: an argument out of range, a sample in two places, or rewards that are not finite numbers
            of the right shape.
    """
    if round_samples < 1:
        raise ValueError(f"round_samples={round_samples} must be at least 1")
    pool = gather_arms(arms)
    before = _known_counts(known, pool.sizes)
    fraction = 0.0 if isinstance(policy, LinUcb) else cold_start_fraction
    cold_start = np.maximum(cold_start_counts(pool.sizes, fraction) - before, 0)
    n_known = int(before.sum())
    _check_budget(budget_samples, cold_start, pool.sizes - before, least=0 if n_known else 1)
    state = fresh_arms(pool.sizes, capacity=n_known + budget_samples)
    outlook = _outlook(pool, policy, context, prior) if isinstance(policy, LinUcb) else None
    log = _blank_log(budget_samples, int(cold_start.sum()), known=n_known)
    run = _Run(pool, state, outlook, log, reward, on_round, costs, n_known)
    _begin(run, before, "known")
    _begin(run, cold_start, "cold_start")
    return _play_on(run, policy, stop, round_samples=round_samples, rng=rng)


def seen_in(log: PullLog) -> Seen:
    """Return what a log of `LinUcb` says of rewards and of how well they were predicted."""
    known = int(np.count_nonzero(log.kinds == "known"))
    # before any reward the bounds were guesses, not predictions, and chance has none
    predicted = (log.rounds > (0 if known else 1)) & np.isfinite(log.bounds)
    return Seen(log.samples, log.rewards, (log.rewards - log.bounds)[predicted], known)


def cold_start_counts(sizes: Sequence[int] | IntArray, fraction: float) -> IntArray:
    """Return how many samples every arm gives first: max(1, floor(fraction x size)).

    Args:
        sizes: samples in each arm, [k].
        fraction: part of an arm, in [0, 1]; 0 means no cold start.

    Returns:
        Counts [k]; 0 for an empty arm.

    Raises:
        ValueError: `fraction` is outside [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"cold_start_fraction={fraction} must lie in [0, 1]")
    array = np.asarray(sizes, dtype=np.int64)
    if fraction == 0.0:
        return np.zeros_like(array)
    counts = np.floor(fraction * array + 1e-9).astype(np.int64)
    return np.minimum(np.maximum(counts, 1), array)


def _check_budget(budget_samples: int, cold_start: IntArray, sizes: IntArray, *, least: int) -> None:
    total, forced = int(sizes.sum()), int(cold_start.sum())
    if budget_samples < least:
        raise BudgetError(f"budget_samples={budget_samples} must be at least {least}; raise the budget")
    if budget_samples > total:
        raise BudgetError(
            f"budget_samples={budget_samples} is above the {total} samples of {len(sizes)} arms; "
            "lower the budget"
        )
    if budget_samples < forced:
        counts = cold_start[cold_start > 0]
        low, high = int(counts.min()), int(counts.max())
        each = f"{low}" if low == high else f"{low} to {high}"
        raise BudgetError(
            f"budget_samples={budget_samples} is below the cold start of {forced} samples "
            f"({len(counts)} arms x {each}); raise the budget or lower cold_start_fraction"
        )


def _play_on(
    run: _Run,
    policy: Policy | LinUcb,
    stop: EarlyStop | None,
    *,
    round_samples: int,
    rng: np.random.Generator,
) -> PullLog:
    """Play rounds until the budget is spent or hardly anything is left to find, and return the log."""
    state, number = run.state, 0
    while state.n_rewards < len(run.log.samples) and not (stop and _is_settled(run, stop)):
        number += 1
        _play(run, _decide(run, policy, number=number, round_samples=round_samples, rng=rng))
    drawn, unspent = state.n_rewards - run.known, len(run.log.samples) - state.n_rewards
    n_arms = len(run.pool.sizes)
    logger.info("%d samples drawn from %d arms, %d rounds, %d unspent", drawn, n_arms, number, unspent)
    return _beginning(run.log, state.n_rewards) if unspent else run.log


def _known_counts(known: Sequence[int] | IntArray | None, sizes: IntArray) -> IntArray:
    counts = np.zeros_like(sizes) if known is None else np.asarray(known, dtype=np.int64)
    if counts.shape != sizes.shape or (counts < 0).any() or (counts > sizes).any():
        raise ValueError(
            f"known={counts.tolist()} must hold a count for each of {len(sizes)} arms, from 0 to its "
            f"samples {sizes.tolist()}"
        )
    return counts


def _blank_log(budget_samples: int, cold_start_samples: int, *, known: int) -> PullLog:
    pulls = known + budget_samples
    kinds = np.full(pulls, "cold_start")
    kinds[:known] = "known"
    kinds[known + cold_start_samples :] = "draw"
    return PullLog(
        samples=np.zeros(pulls, dtype=np.int64),
        arms=np.zeros(pulls, dtype=np.int64),
        rewards=np.zeros(pulls),
        rounds=np.zeros(pulls, dtype=np.int64),
        kinds=kinds,
        bounds=np.zeros(pulls),
        means=np.zeros(pulls),
        stds=np.zeros(pulls),
        lefts=np.zeros(pulls, dtype=np.int64),
    )


def _play(run: _Run, decision: _Decision) -> None:
    """Draw the decided samples, compute their rewards, and add both to the log and the state."""
    state, log, samples, arms = run.state, run.log, decision.samples, decision.arms
    span = slice(state.n_rewards, state.n_rewards + len(arms))
    scores = checked_scores(run.reward(samples.copy()), samples)
    rewards = largest_scores(scores)
    log.samples[span] = samples
    log.arms[span] = arms
    log.rewards[span] = rewards
    log.rounds[span] = decision.round
    log.bounds[span] = decision.bounds
    log.means[span] = state.means[arms]
    log.stds[span] = arm_stds(state)[arms]
    log.lefts[span] = decision.lefts
    add_rewards(state, arms, rewards)
    if run.outlook is not None:
        observe(run.outlook, samples, scores)
    if run.on_round is not None:
        run.on_round(_round_report(run, decision, rewards.copy()))


def _begin(run: _Run, counts: IntArray, kind: PullKind) -> None:
    """Play the first samples of every arm, so many of each, before the policy decides."""
    if counts.any():
        arms = np.repeat(np.arange(len(counts)), counts)
        _play(run, _from_arms(run, arms, np.full(len(arms), np.nan), number=0, kind=kind))


def _from_arms(
    run: _Run, arms: IntArray, bounds: FloatArray, *, number: int, kind: PullKind = "draw"
) -> _Decision:
    """Return the decision for the next samples of the drawn arms, each arm from front to back."""
    pool = run.pool
    lefts = run.state.lefts[arms] - earlier_draws(arms)
    samples = pool.samples[pool.starts[arms] + pool.sizes[arms] - lefts]
    return _Decision(number, kind, samples, arms, bounds, lefts)


def _outlook(pool: Drawable, policy: LinUcb, context: FloatArray | None, prior: FloatArray | None) -> Outlook:
    if context is None:
        raise ValueError("LinUcb regresses rewards on side information; give context, an array [n, f]")
    return open_outlook(pool.samples, context, prior, width=policy.width)


def _decide(
    run: _Run, policy: Policy | LinUcb, *, number: int, round_samples: int, rng: np.random.Generator
) -> _Decision:
    count = min(round_samples, len(run.log.samples) - run.state.n_rewards)
    if isinstance(policy, LinUcb):
        return _best_samples(run, policy, number=number, count=count, rng=rng)
    limit = -(-round_samples // _ARM_PARTS_PER_ROUND)
    drawn, bounds = bounded_draws(policy, run.state, count=count, max_per_arm=limit, rng=rng)
    return _from_arms(run, drawn, bounds, number=number)


def _best_samples(
    run: _Run, policy: LinUcb, *, number: int, count: int, rng: np.random.Generator
) -> _Decision:
    """Choose the samples of one round: the best by expectation, then some at random from the others."""
    outlook = run.outlook
    assert outlook is not None, "a policy of samples has an outlook"
    expected = expectations(outlook)
    at_random = count if expected is None else math.floor(policy.explore_fraction * count + 1e-9)
    best = np.zeros(0, dtype=np.int64)
    if expected is not None and run.costs is None:
        best = best_open(outlook, expected, count - at_random)
    elif expected is not None and run.costs is not None:
        left, seen = np.flatnonzero(outlook.open), seen_in(_beginning(run.log, run.state.n_rewards))
        best = best_within(run.costs, left, expected, seen, count=count, at_random=at_random)
    others = np.setdiff1d(np.flatnonzero(outlook.open), best, assume_unique=True)
    samples = np.concatenate([best, rng.choice(others, size=at_random, replace=False)])
    arms = arms_of(run.pool, samples)
    bounds = np.full(count, np.nan) if expected is None else expected[samples]
    return _Decision(number, "draw", samples, arms, bounds, run.state.lefts[arms] - earlier_draws(arms))


def _is_settled(run: _Run, stop: EarlyStop) -> bool:
    """Tell whether hardly any sample above the k-th best reward is expected undrawn."""
    state, outlook = run.state, run.outlook
    if stop.tolerance == 0.0 or state.n_rewards < stop.k:
        return False
    threshold = float(ranked_rewards(state)[0][-stop.k])
    if outlook is None:
        return expected_in_arms(state, threshold) < stop.tolerance * stop.k
    expected = expectations(outlook)
    assert expected is not None, "a reward was seen"
    errors = seen_in(_beginning(run.log, state.n_rewards)).errors
    return expected_in_samples(expected[outlook.open], errors, threshold) < stop.tolerance * stop.k


def _beginning(log: PullLog, pulls: int) -> PullLog:
    return PullLog(**{field.name: getattr(log, field.name)[:pulls] for field in fields(log)})


def _round_report(run: _Run, decision: _Decision, rewards: Float64Array) -> RoundReport:
    return RoundReport(
        round=decision.round,
        kind=decision.kind,
        samples=decision.samples,
        arms=decision.arms,
        rewards=rewards,
        spent_samples=run.state.n_rewards - run.known,
        budget_samples=len(run.log.samples) - run.known,
        open_arms=int(np.count_nonzero(run.state.lefts)),
    )
