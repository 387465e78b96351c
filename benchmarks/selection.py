"""How much of the reachable influence each policy captures, in real dynamic mode on real data.

Trajectories (see `trajectories.py`) are computed once a target and seed; every policy is replayed on their
rewards at every re-selection, periods 2 to 4. A table of mean captured influence and recall of the true top
5 %, the mean over re-selections and seeds, is printed and kept as JSON; for audited policies also how often
the certificate's 95 % interval covers the true recall, over several audits a replay, and its median width.

    python benchmarks/selection.py --folder FOLDER [--seeds 3] [--out results/selection.json]
"""

import argparse
import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import hardware, today, versions, write_result
from numpy.typing import NDArray
from trajectories import VALIDATION_ROWS, Trajectory, open_trajectory

from clusterucb_core.bandit.audits import Audit, audit_pulls
from clusterucb_core.bandit.policies import LinUcb, Policy, ThresholdNormal, Ucb1, UcbBeta, Uniform
from clusterucb_core.bandit.pulls import pull_arms
from clusterucb_core.certificate import Certificate, certify
from clusterucb_core.clustering import spherical_kmeans
from clusterucb_core.influence import captured_influence, recall_at_k, top_k
from clusterucb_core.seeds import child_rng
from clusterucb_core.selection import share_of
from clusterucb_core.stages.contexts import NARROWEST, context_width, fold

TOP_FRACTION, AUDIT_FRACTION, BUDGETS = 0.05, 0.04, (0.05, 0.1, 0.2)
CLUSTERS, ROUND_SAMPLES = 50, 64
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


@dataclass(frozen=True)
class Way:
    """A policy as it is replayed: its context's width where it has one, and the share that is audited."""

    policy: Policy | LinUcb
    width: int = 0
    audit_fraction: float = 0.0


def pull(replay: Replay, way: Way, budget: int, *, attempt: int = 0) -> Audit:
    """Return what a policy draws, its audit after it."""
    n = len(replay.scores)
    audit_samples = share_of(way.audit_fraction, n)
    context, prior = (replay.contexts[way.width], replay.prior) if way.width else (None, None)
    log = pull_arms(
        replay.arms,
        lambda rows: replay.scores[rows],
        policy=way.policy,
        budget_samples=budget - audit_samples,
        cold_start_fraction=min(0.05, 0.5 * (budget - audit_samples) / n),
        round_samples=ROUND_SAMPLES,
        context=context,
        prior=prior,
        rng=child_rng(replay.seed, "replay", str(attempt)),
    )
    if audit_samples == 0:
        return Audit(log, 0, 0)
    return audit_pulls(
        replay.arms,
        lambda rows: replay.scores[rows],
        log=log,
        policy=way.policy,
        audit_samples=audit_samples,
        round_samples=ROUND_SAMPLES,
        context=context,
        prior=prior,
        rng=child_rng(replay.seed, "audit", str(attempt)),
    )


def by_prior(replay: Replay, budget: int) -> NDArray[np.int64]:
    """Draw what the prior alone puts first."""
    return np.asarray(top_k(replay.prior.max(axis=1), budget))


def measure(replay: Replay, drawn: NDArray[np.int64]) -> tuple[float, float]:
    """Return captured influence and recall of the best k of what was drawn."""
    k = share_of(TOP_FRACTION, len(replay.scores))
    chosen = drawn[top_k(replay.influence[drawn], k)]
    return captured_influence(replay.influence, chosen, k), recall_at_k(replay.influence, chosen, k)


def certificate_of(replay: Replay, audit: Audit, *, attempt: int = 0) -> Certificate:
    """Return what the audit says of recall and captured influence."""
    rewards = audit.log.rewards
    k = share_of(TOP_FRACTION, len(replay.scores))
    known, audited = rewards[: -audit.n_uniform], rewards[-audit.n_uniform :]
    rng = child_rng(replay.seed, "certificate", str(attempt))
    return certify(known, audited, audit.n_left, k=k, rng=rng)


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


def replay_all(cases: list[Replay], way: Way, budget: int, *, attempts: int) -> dict[str, object]:
    """Return the means of one way and budget over all replays, and of its certificates, if any."""
    began = time.process_time()
    measured: list[tuple[float, float]] = []
    covered: list[bool] = []
    widths: list[float] = []
    tries = attempts if way.audit_fraction else 1
    for case, attempt in itertools.product(cases, range(tries)):
        audit = pull(case, way, budget, attempt=attempt)
        measured.append(measure(case, audit.log.samples))
        if way.audit_fraction:
            found = certificate_of(case, audit, attempt=attempt)
            covered.append(found.recall_low <= measured[-1][1] <= found.recall_high)
            widths.append(found.recall_high - found.recall_low)
    captured, recall = np.mean(measured, axis=0)
    result: dict[str, object] = {
        "captured_influence": round(float(captured), 4),
        "recall": round(float(recall), 4),
        "replays": len(measured),
        "cpu_seconds_a_replay": round((time.process_time() - began) / len(measured), 2),
    }
    if covered:
        result |= {
            "coverage": round(float(np.mean(covered)), 4),
            "median_width": round(float(np.median(widths)), 3),
        }
    return result


def run(
    folder: Path, *, samples: int, periods: int, seeds: int, targets: list[str], attempts: int
) -> list[dict[str, object]]:
    """Replay every policy and return one row a target, policy and budget."""
    wide = context_width(samples)
    ways = {name: Way(policy) for name, policy in POLICIES.items()}
    ways |= {
        "linucb": Way(LinUcb(), wide),
        "linucb, context of 512": Way(LinUcb(), NARROWEST),
        "linucb, no chance": Way(LinUcb(explore_fraction=0.0), wide),
        "ucb_beta, audited": Way(UcbBeta(), 0, AUDIT_FRACTION),
        "linucb, audited": Way(LinUcb(), wide, AUDIT_FRACTION),
    }
    rows: list[dict[str, object]] = []
    for target in targets:
        cases = [
            case
            for seed in range(seeds)
            for case in replays(
                open_trajectory(target, seed=seed, samples=samples, periods=periods, folder=folder),
                seed=seed,
                widths=(NARROWEST, wide),
            )
        ]
        for budget_fraction in BUDGETS:
            budget = share_of(budget_fraction, samples)
            found = np.mean([measure(case, by_prior(case, budget)) for case in cases], axis=0)
            alone = {"captured_influence": round(float(found[0]), 4), "recall": round(float(found[1]), 4)}
            named = {"prior only": alone} | {
                name: replay_all(cases, way, budget, attempts=attempts) for name, way in ways.items()
            }
            for name, measures in named.items():
                rows.append(
                    {"target": target, "policy": name, "budget_fraction": budget_fraction, **measures}
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
    parser.add_argument("--attempts", type=int, default=5, help="draws with an audit, a replay")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "selection.json")
    chosen = parser.parse_args()
    rows = run(
        chosen.folder,
        samples=chosen.samples,
        periods=chosen.periods,
        seeds=chosen.seeds,
        targets=chosen.targets.split(","),
        attempts=chosen.attempts,
    )
    result = {
        "benchmark": "selection",
        "date": today(),
        "command": "python benchmarks/selection.py " + " ".join(sys.argv[1:]),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions("clusterucb", "torch", "numpy", "scipy"),
        "rows": rows,
    }
    write_result(chosen.out, result)


if __name__ == "__main__":
    main()
