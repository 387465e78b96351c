"""When to stop before the budget is spent: hardly any sample above the k-th best reward is expected undrawn.

The k best rewards so far are selected; the k-th of them is the threshold t. Were M undrawn samples above t,
the selection would lack at most M of the true top k. What is estimated here is the expectation of M, and what
nothing is known of counts in full.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs]

from clusterucb_core.bandit.arms import ArmState
from clusterucb_core.records import FloatArray

_PSEUDO_SAMPLES = 0.5


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """Stop when fewer than `tolerance` x `k` samples above the k-th best reward are expected undrawn.

    A tolerance of 0 never stops.

    Raises:
        ValueError: `k` is below 1 or `tolerance` outside [0, 1).
    """

    k: int
    tolerance: float

    def __post_init__(self):
        if self.k < 1 or not 0.0 <= self.tolerance < 1.0:
            raise ValueError(
                f"an early stop with k={self.k}, tolerance={self.tolerance}: k must be at least 1 and the "
                "tolerance in [0, 1)"
            )


def expected_in_arms(state: ArmState, threshold: float) -> float:
    """Return how many undrawn samples are expected above a threshold, from the rewards of each arm.

    An arm's draws are a random sample of it, so its next reward follows the predictive distribution of a
    normal sample: Student's t with n - 1 degrees of freedom around the mean, of scale s sqrt(1 + 1/n), s the
    sample standard deviation (Gelman et al., Bayesian Data Analysis, 3rd edition, section 3.2). Where rewards
    are few the tail is heavy. Equal rewards are taken to go on; an arm with fewer than two may hold anything.

    Args:
        state: what was seen of the arms.
        threshold: reward to be above.
    """
    still_open = state.lefts > 0
    counts, distances = state.counts[still_open], state.means[still_open] - threshold
    freedom = np.maximum(counts - 1, 1)
    scales = np.sqrt(state.squares[still_open] / freedom * (1.0 + 1.0 / np.maximum(counts, 1)))
    with np.errstate(over="ignore"):  # a tiny scale may give an infinite distance: a probability of 0 or 1
        above = stdtr(freedom, distances / np.where(scales > 0.0, scales, 1.0))
    above = np.where(scales > 0.0, above, np.where(distances > 0.0, 1.0, 0.0))
    above = np.where(counts < 2, 1.0, above)
    return float(state.lefts[still_open] @ above)


def expected_in_samples(expected: FloatArray, errors: FloatArray, threshold: float) -> float:
    """Return how many undrawn samples are expected above a threshold, from predictions of their rewards.

    A reward is taken to be its prediction plus an error: any of those seen so far with equal chance, or, with
    half the chance of one, an error above them all. That is the mean of a Bayesian bootstrap (Rubin, 1981)
    with the pseudo sample that a certificate has too: m errors leave room for half an m-th of the pool to
    surprise. Where errors are skewed or heavy in the tail, a Student's t fit to them stopped too soon.

    Args:
        expected: predicted rewards of the undrawn samples, [n].
        errors: rewards minus what was predicted of them before they were seen, [m].
        threshold: reward to be above.
    """
    below = np.searchsorted(np.sort(errors), threshold - expected, side="right")
    return float((len(errors) - below + _PSEUDO_SAMPLES).sum()) / (len(errors) + _PSEUDO_SAMPLES)
