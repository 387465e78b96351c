"""How much of the reachable influence each policy captures, in real dynamic mode on real data.

Trajectories (see `trajectories.py`) are computed once a target and seed; every policy is replayed on their
rewards at every re-selection, periods 2 to 4. A table of mean captured influence and recall of the true top
5 %, the mean over re-selections and seeds, is printed and kept as JSON.

    python benchmarks/selection.py --folder FOLDER [--seeds 3] [--out results/selection.json]
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from trajectories import VALIDATION_ROWS, Trajectory, open_trajectory

from clusterucb_core.bandit.policies import LinUcb, Policy, ThresholdNormal, Ucb1, UcbBeta, Uniform
from clusterucb_core.bandit.pulls import pull_arms
from clusterucb_core.clustering import spherical_kmeans
from clusterucb_core.influence import captured_influence, recall_at_k, top_k
from clusterucb_core.seeds import child_rng
from clusterucb_core.selection import share_of
from clusterucb_core.stages.contexts import NARROWEST, context_width, fold

TOP_FRACTION, BUDGETS, CLUSTERS = 0.05, (0.05, 0.1, 0.2), 50
POLICIES: dict[str, Policy] = {
    "uniform": Uniform(),
    "ucb1": Ucb1(),
    "threshold_normal": ThresholdNormal(),
    "ucb_beta": UcbBeta(),
}


@dataclass(frozen=True)
class Replay:
    """One re-selection: the true scores [n, s], what was known before it, and the arms."""

    scores: NDArray[np.float64]
    prior: NDArray[np.float64]
    contexts: dict[int, NDArray[np.float32]]
    arms: list[NDArray[np.int64]]
    seed: int

    @property
    def influence(self) -> NDArray[np.float64]:
        """The true reward of every sample [n]."""
        return self.scores.max(axis=1)


Draw = Callable[[Replay, int], NDArray[np.int64]]


def draws_of(policy: Policy) -> Draw:
    """Return a cluster policy as a function from a replay and a budget to the samples drawn."""

    def draw(replay: Replay, budget: int) -> NDArray[np.int64]:
        log = pull_arms(
            replay.arms,
            lambda rows: replay.scores[rows],
            policy=policy,
            budget_samples=budget,
            cold_start_fraction=min(0.05, 0.5 * budget / len(replay.scores)),
            round_samples=64,
            rng=child_rng(replay.seed, "replay"),
        )
        return np.asarray(log.samples)

    return draw


def linear(width: int, explore_fraction: float) -> Draw:
    """Return `linucb` on contexts of some width."""

    def draw(replay: Replay, budget: int) -> NDArray[np.int64]:
        log = pull_arms(
            replay.arms,
            lambda rows: replay.scores[rows],
            policy=LinUcb(explore_fraction=explore_fraction),
            budget_samples=budget,
            round_samples=64,
            context=replay.contexts[width],
            prior=replay.prior,
            rng=child_rng(replay.seed, "replay"),
        )
        return np.asarray(log.samples)

    return draw


def by_prior(replay: Replay, budget: int) -> NDArray[np.int64]:
    """Draw what the prior alone puts first."""
    return np.asarray(top_k(replay.prior.max(axis=1), budget))


def measure(replay: Replay, drawn: NDArray[np.int64]) -> tuple[float, float]:
    """Return captured influence and recall of the best k of what was drawn."""
    k = share_of(TOP_FRACTION, len(replay.scores))
    chosen = drawn[top_k(replay.influence[drawn], k)]
    return captured_influence(replay.influence, chosen, k), recall_at_k(replay.influence, chosen, k)


def replays(trajectory: Trajectory, *, seed: int, widths: tuple[int, ...]) -> list[Replay]:
    """Return the re-selections of a trajectory."""
    features = trajectory.features.astype(np.float32)
    labels, _ = spherical_kmeans(features, CLUSTERS, rng=child_rng(seed, "clusters"))
    contexts = {width: fold(features, width, seed=seed) for width in widths}
    return [
        Replay(scores, trajectory.prior(period), contexts, _arms(labels, seed * 100 + period), seed)
        for period, scores in enumerate(trajectory.scores)
        if period > 0
    ]


def _arms(labels: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    return [
        child_rng(seed, "arm", str(arm)).permutation(np.flatnonzero(labels == arm)) for arm in range(CLUSTERS)
    ]


def run(
    folder: Path, *, samples: int, periods: int, seeds: int, targets: list[str]
) -> list[dict[str, object]]:
    """Replay every policy and return one row a target, policy and budget."""
    ways: dict[str, Draw] = {name: draws_of(policy) for name, policy in POLICIES.items()}
    ways |= {
        "prior only": by_prior,
        "linucb": linear(context_width(samples), 0.1),
        "linucb, context of 512": linear(NARROWEST, 0.1),
        "linucb, no chance": linear(context_width(samples), 0.0),
    }
    rows: list[dict[str, object]] = []
    for target in targets:
        cases = [
            case
            for seed in range(seeds)
            for case in replays(
                open_trajectory(target, seed=seed, samples=samples, periods=periods, folder=folder),
                seed=seed,
                widths=(NARROWEST, context_width(samples)),
            )
        ]
        for name, draw in ways.items():
            for budget in BUDGETS:
                began = time.process_time()
                found = np.array([measure(case, draw(case, share_of(budget, samples))) for case in cases])
                rows.append(
                    {
                        "target": target,
                        "policy": name,
                        "budget_fraction": budget,
                        "captured_influence": round(float(found[:, 0].mean()), 4),
                        "recall": round(float(found[:, 1].mean()), 4),
                        "replays": len(cases),
                        "cpu_seconds_a_replay": round((time.process_time() - began) / len(cases), 2),
                    }
                )
                print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def main() -> None:
    """Read the command line, replay, and keep the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where trajectories are kept")
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--periods", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", default=",".join(VALIDATION_ROWS))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows = run(
        chosen.folder,
        samples=chosen.samples,
        periods=chosen.periods,
        seeds=chosen.seeds,
        targets=chosen.targets.split(","),
    )
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
