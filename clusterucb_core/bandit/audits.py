"""The audit: rewards of samples that the policy left undrawn, from which a certificate is estimated.

Under a cluster policy the audit is uniform over what is left. Under `LinUcb` two thirds of it go, round by
round, where most is expected, and the last third is uniform over what is left then: what is easy to find is
found, and chance has less to look for. (In the terms of survey sampling: a take-all stratum, then a simple
random sample.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clusterucb_core.bandit.arms import Float64Array, Int64Array, add_rewards, arm_stds, fresh_arms
from clusterucb_core.bandit.costs import CostLimit, Seen, best_within
from clusterucb_core.bandit.drawable import Drawable, arms_of, checked_scores, earlier_draws, gather_arms
from clusterucb_core.bandit.outlooks import Outlook, best_open, expectations, observe, open_outlook
from clusterucb_core.bandit.policies import LinUcb, Policy
from clusterucb_core.bandit.pulls import PullLog, Reward, seen_in
from clusterucb_core.errors import BudgetError
from clusterucb_core.records import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Audit:
    """A pull log that ends with the audit, whose last `n_uniform` pulls are uniform over `n_left` samples."""

    log: PullLog
    n_uniform: int
    n_left: int


@dataclass(frozen=True, slots=True)
class _Round:
    """The samples [m] of one round, their rewards and the bound [m] that chose each, NaN for chance."""

    samples: Int64Array
    rewards: Float64Array
    bounds: Float64Array


def audit_pulls(
    arms: Sequence[IntArray],
    reward: Reward,
    *,
    log: PullLog,
    policy: Policy | LinUcb,
    audit_samples: int,
    rng: np.random.Generator,
    round_samples: int = 1,
    context: FloatArray | None = None,
    prior: FloatArray | None = None,
    costs: CostLimit | None = None,
) -> Audit:
    """Draw `audit_samples` samples that a policy left undrawn.

    Args:
        arms: the arms that were drawn from.
        reward: as in `pull_arms`; under `LinUcb` it is asked again for the samples of `log`.
        log: what the policy drew.
        policy: the policy.
        audit_samples: samples to draw, at least 1.
        rng: source of all randomness.
        round_samples: draws of one round.
        context: as in `pull_arms`.
        prior: as in `pull_arms`.
        costs: as in `pull_arms`.

    Raises:
        BudgetError: fewer samples are left than the audit draws.
        ValueError: as in `pull_arms`.
    """
    pool = gather_arms(arms)
    left = np.setdiff1d(pool.samples, log.samples)
    if not 1 <= audit_samples <= len(left):
        raise BudgetError(
            f"audit_samples={audit_samples} must be at least 1 and at most the {len(left)} samples that were "
            "left undrawn; lower the audit or the budget"
        )
    rounds: list[_Round] = []
    if isinstance(policy, LinUcb) and audit_samples > 1:
        if context is None:
            raise ValueError("LinUcb regresses rewards on side information; give context, an array [n, f]")
        outlook = open_outlook(pool.samples, context, prior)
        observe(outlook, log.samples, checked_scores(reward(log.samples.copy()), log.samples))
        sought = audit_samples * 2 // 3
        rounds = _sought(outlook, reward, log, sought=sought, round_samples=round_samples, costs=costs)
        left = np.setdiff1d(left, np.concatenate([played.samples for played in rounds]))
    n_uniform = audit_samples - sum(len(played.samples) for played in rounds)
    samples = rng.choice(left, size=n_uniform, replace=False)
    rewards = checked_scores(reward(samples.copy()), samples).max(axis=1)
    rounds.append(_Round(samples, rewards, np.full(n_uniform, np.nan)))
    return Audit(_extended(log, pool, rounds), n_uniform, len(left))


def _sought(
    outlook: Outlook,
    reward: Reward,
    log: PullLog,
    *,
    sought: int,
    round_samples: int,
    costs: CostLimit | None,
) -> list[_Round]:
    """Draw so many samples of which most is expected, round by round."""
    rounds: list[_Round] = []
    seen = seen_in(log)
    for start in range(0, sought, round_samples):
        expected = expectations(outlook)
        assert expected is not None, "a log holds rewards"
        count = min(round_samples, sought - start)
        if costs is None:
            samples = best_open(outlook, expected, count)
        else:
            samples = best_within(costs, np.flatnonzero(outlook.open), expected, seen, count=count)
        scores = checked_scores(reward(samples.copy()), samples)
        observe(outlook, samples, scores)
        rounds.append(_Round(samples, scores.max(axis=1), expected[samples]))
        seen = _with_round(seen, rounds[-1])
    return rounds


def _with_round(seen: Seen, played: _Round) -> Seen:
    return Seen(
        np.concatenate([seen.samples, played.samples]),
        np.concatenate([seen.rewards, played.rewards]),
        np.concatenate([seen.errors, played.rewards - played.bounds]),
        seen.known,
    )


def _extended(log: PullLog, pool: Drawable, rounds: list[_Round]) -> PullLog:
    state = fresh_arms(pool.sizes, capacity=len(log.samples))
    add_rewards(state, log.arms, log.rewards)
    samples = np.concatenate([played.samples for played in rounds])
    arms = arms_of(pool, samples)
    sizes = [len(played.samples) for played in rounds]
    first = int(log.rounds[-1]) + 1
    return replace(
        log,
        samples=np.concatenate([log.samples, samples]),
        arms=np.concatenate([log.arms, arms]),
        rewards=np.concatenate([log.rewards, *(played.rewards for played in rounds)]),
        rounds=np.concatenate([log.rounds, np.repeat(np.arange(first, first + len(rounds)), sizes)]),
        kinds=np.concatenate([log.kinds, np.full(len(samples), "audit")]),
        bounds=np.concatenate([log.bounds, *(played.bounds for played in rounds)]),
        means=np.concatenate([log.means, state.means[arms]]),
        stds=np.concatenate([log.stds, arm_stds(state)[arms]]),
        lefts=np.concatenate([log.lefts, state.lefts[arms] - earlier_draws(arms)]),
    )
