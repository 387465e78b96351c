"""Bandit policies: from what was seen of every arm to the arms drawn next.

To add a policy, edit this file only: a frozen variant in the union `Policy`, a `case` in `arm_bounds` and in
`bounded_draws`, and, where it reads a number of its own, a field of that name in `PolicySettings`.
`ucb_beta` and the two threshold policies follow ClusterUCB (arXiv 2506.10288), `ucb1` Auer et al. (2002).
"""

import math
from typing import Annotated, Literal, assert_never, get_args

import numpy as np
from pydantic import Field
from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]

from clusterucb_core.bandit.arms import ArmState, Float64Array, Int64Array, arm_stds, ranked_rewards
from clusterucb_core.frozen import Frozen
from clusterucb_core.records import FloatArray, IntArray

TopShare = Annotated[
    float,
    Field(
        gt=0.0, lt=1.0, title="Top share", description="Share of all rewards that lies above the threshold"
    ),
]


class UcbBeta(Frozen):
    """Draw the arm with the largest `mean + beta * std` (population std)."""

    kind: Literal["ucb_beta"] = "ucb_beta"
    beta: float = Field(
        default=1.0, ge=0.0, allow_inf_nan=False, title="Beta", description="Weight of the standard deviation"
    )


class Ucb1(Frozen):
    """Draw the arm with the largest `mean + sqrt(2 ln t / n)`, t rewards so far, n of them the arm's."""

    kind: Literal["ucb1"] = "ucb1"


class ThresholdHard(Frozen):
    """Draw the arm with the largest share of rewards at or above a quantile of all rewards."""

    kind: Literal["threshold_hard"] = "threshold_hard"
    top_share: TopShare = 0.25


class ThresholdNormal(Frozen):
    """Draw the arm with the largest share above that quantile under a normal fit of its rewards."""

    kind: Literal["threshold_normal"] = "threshold_normal"
    top_share: TopShare = 0.25


class Uniform(Frozen):
    """Draw a random open arm."""

    kind: Literal["uniform"] = "uniform"


class LinUcb(Frozen):
    """Draw the samples of which a ridge regression on side information expects most, and some at random.

    `explore_fraction` of every round is uniform over the samples left; `width` standard deviations of the
    prediction are added to it (Li et al., 2010).
    """

    kind: Literal["linucb"] = "linucb"
    explore_fraction: float = Field(
        default=0.1, ge=0.0, le=1.0, title="Explore fraction", description="Uniform share of every round"
    )
    width: float = Field(
        default=0.0, ge=0.0, allow_inf_nan=False, title="Width", description="Weight of the uncertainty"
    )


class PolicySettings(Frozen):
    """A policy's name and the numbers that policies read, flat as they stand in the run configuration."""

    policy: str = "ucb_beta"
    beta: float = Field(
        default=1.0, ge=0, title="Beta", description="Weight of the spread of rewards in ucb_beta."
    )
    top_share: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        title="Top share",
        description="Share p of rewards that the threshold policies call high.",
    )


Policy = Annotated[UcbBeta | Ucb1 | ThresholdHard | ThresholdNormal | Uniform, Field(discriminator="kind")]
POLICY_KINDS = {variant.model_fields["kind"].default: variant for variant in get_args(get_args(Policy)[0])}


def configured_policy(settings: PolicySettings) -> Policy:
    """Return the policy that the settings name, one of `POLICY_KINDS`, with the numbers that it reads."""
    variant = POLICY_KINDS[settings.policy]
    fields = [name for name in variant.model_fields if name != "kind"]
    return variant(**{name: getattr(settings, name) for name in fields})


def arm_bounds(policy: Policy, state: ArmState) -> FloatArray:
    """Return the bound of every arm under a policy.

    Args:
        policy: the policy.
        state: what was seen of the k arms.

    Returns:
        Bounds [k]: -inf for a closed arm, +inf for an open arm without a reward. A threshold policy's bound
        is the share; the bound of `uniform` is 0.
    """
    match policy:
        case UcbBeta():
            bounds = state.means + policy.beta * arm_stds(state)
        case Ucb1():
            spread = 2.0 * math.log(max(state.n_rewards, 1))
            bounds = state.means + np.sqrt(spread / np.maximum(state.counts, 1))
        case ThresholdHard():
            bounds = _hard_shares(state, policy.top_share)
        case ThresholdNormal():
            bounds = _normal_shares(state, policy.top_share)
        case Uniform():
            bounds = np.zeros(len(state.counts))
        case _:
            assert_never(policy)
    bounds = np.where(state.counts == 0, np.inf, bounds)
    # Never 0: with negative rewards a closed arm would win.
    bounds[state.lefts == 0] = -np.inf
    return bounds


def next_draws(
    policy: Policy, state: ArmState, *, count: int, max_per_arm: int, rng: np.random.Generator
) -> IntArray:
    """Return the arms of one round, all chosen on the bounds as they stand.

    The best arm gives up to `max_per_arm` draws, then the next best, and so on; ties go to the lowest arm. An
    arm without a reward gives one draw, before all others.

    Args:
        policy: the policy.
        state: what was seen of the k arms; left as it is.
        count: draws wanted, at least 1.
        max_per_arm: the most draws that one arm may give, at least 1.
        rng: used by `uniform` only.

    Returns:
        Arm indices in drawing order, `count` of them, or fewer where every arm is closed or at its limit.
    """
    return bounded_draws(policy, state, count=count, max_per_arm=max_per_arm, rng=rng)[0]


def bounded_draws(
    policy: Policy, state: ArmState, *, count: int, max_per_arm: int, rng: np.random.Generator
) -> tuple[IntArray, FloatArray]:
    """Return the arms of one round as `next_draws` does, and the bound that chose each."""
    limits = np.minimum(state.lefts, np.where(state.counts == 0, 1, max_per_arm))
    bounds = arm_bounds(policy, state)
    match policy:
        case UcbBeta() | Ucb1():
            drawn = _best_first(_descending(bounds, count), limits, count)
        case ThresholdHard() | ThresholdNormal():
            # Among arms with no share above the threshold the largest reward decides (method.md, section 2).
            largest = np.where(bounds == 0.0, state.maxima, 0.0)
            drawn = _best_first(np.lexsort((-largest, -bounds)), limits, count)
        case Uniform():
            drawn = _at_random(np.isposinf(bounds), limits, count, rng=rng)
        case _:
            assert_never(policy)
    return drawn, bounds[drawn]


def _descending(bounds: FloatArray, count: int) -> Int64Array:
    """Return the arms from the largest bound down, or the first of them alone where one draw is wanted."""
    return np.array([bounds.argmax()]) if count == 1 else np.argsort(-bounds, kind="stable")


def _best_first(order: Int64Array, limits: Int64Array, count: int) -> Int64Array:
    return order.repeat(limits[order])[:count]


def _at_random(unseen: np.ndarray, limits: Int64Array, count: int, *, rng: np.random.Generator) -> Int64Array:
    drawn: list[int] = np.flatnonzero(unseen)[:count].tolist()
    remaining: list[int] = np.where(unseen, 0, limits).tolist()
    candidates = [arm for arm, left in enumerate(remaining) if left > 0]
    while candidates and len(drawn) < count:
        place = int(rng.integers(len(candidates)))
        arm = candidates[place]
        drawn.append(arm)
        remaining[arm] -= 1
        if remaining[arm] == 0:
            candidates.pop(place)
    return np.array(drawn, dtype=np.int64)


def _threshold(ranked: Float64Array, top_share: float) -> float:
    """Return the (floor(n p) + 1)-th largest of n > 0 ascending rewards."""
    return float(ranked[len(ranked) - 1 - math.floor(len(ranked) * top_share + 1e-9)])


def _hard_shares(state: ArmState, top_share: float) -> Float64Array:
    ranked, arms = ranked_rewards(state)
    if not len(ranked):
        return np.zeros(len(state.counts))
    first = int(np.searchsorted(ranked, _threshold(ranked, top_share), side="left"))
    above = np.bincount(arms[first:], minlength=len(state.counts))
    return above / np.maximum(state.counts, 1)


def _normal_shares(state: ArmState, top_share: float) -> Float64Array:
    ranked, _ = ranked_rewards(state)
    if not len(ranked):
        return np.zeros(len(state.counts))
    threshold = _threshold(ranked, top_share)
    stds = arm_stds(state)
    with np.errstate(over="ignore"):  # a tiny deviation may give an infinite distance: a share of 0 or 1
        distances = (state.means - threshold) / np.where(stds > 0.0, stds, 1.0)
    return np.where(stds > 0.0, ndtr(distances), np.where(state.means >= threshold, 1.0, 0.0))
