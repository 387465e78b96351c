"""How much of the reachable influence each policy captures, and at what cost, in dynamic mode on real data.

Trajectories (see `trajectories.py`) are computed once a target and seed; every policy is replayed on their
rewards at every re-selection, periods 2 to 4, and where it needs no gradient pass before it, at period 1.
Three tables are printed and kept as JSON:

- `policies`: mean captured influence and recall of the true top 5 % over re-selections and seeds, and the
  operations of a whole run over those of full selection, target gradients apart; with the default audit, too;
- `first_pass`: captured influence against that total cost, for side information that costs more or less;
- `certificates`: how often 95 % intervals of recall and captured influence cover the truth, over many draws.

    python benchmarks/selection.py --folder FOLDER [--targets gsm8k,bbh] [--seeds 3]
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import RESULTS, hardware, today, versions, write_result
from numpy.typing import NDArray
from trajectories import VALIDATION_ROWS, States, Trajectory, open_states, open_trajectory

from clusterucb_core.bandit.audits import Audit, audit_pulls
from clusterucb_core.bandit.costs import CostLimit
from clusterucb_core.bandit.policies import (
    LinUcb,
    Policy,
    ThresholdHard,
    ThresholdNormal,
    Ucb1,
    UcbBeta,
    Uniform,
)
from clusterucb_core.bandit.pulls import pull_arms
from clusterucb_core.certificate import Certificate, certify
from clusterucb_core.clustering import spherical_kmeans
from clusterucb_core.influence import captured_influence, recall_at_k, subtask_scores, top_k
from clusterucb_core.seeds import child_rng
from clusterucb_core.selection import SelectionSettings, share_of
from clusterucb_core.stages.contexts import CONTEXT_WIDTH, balanced, fold, on_scale_of

TOP_FRACTION, AUDIT_FRACTION, BUDGETS, CERTIFIED_BUDGET = 0.05, 0.04, (0.05, 0.1, 0.2), 0.1
COST_LIMIT = SelectionSettings().cost_limit
CURVE_BUDGETS = (0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2)
CLUSTERS, ROUND_SAMPLES = 50, 64
# a forward pass takes half the operations of a gradient
FORWARD = 0.5
CLUSTER_POLICIES: dict[str, Policy] = {
    "uniform": Uniform(),
    "ucb1": Ucb1(),
    "threshold_hard": ThresholdHard(),
    "threshold_normal": ThresholdNormal(),
    "ucb_beta": UcbBeta(),
}
GRADIENT, HIDDEN, ALONE = "gradient", "hidden_state", "gradients alone"


@dataclass(frozen=True)
class Side:
    """What a policy knows before it draws: `context` [n, f] and `prior` [n, s] (None: clusters alone).

    `first_pass` is what it costs, in gradient passes over the pool: 1 gives the first selection as well.
    """

    context: NDArray[np.float32] | None
    prior: NDArray[np.float64] | None
    first_pass: float


@dataclass(frozen=True)
class Replay:
    """One selection of a trajectory: the true scores [n, s], side information by name, arms, tokens [n]."""

    scores: NDArray[np.float64]
    sides: dict[str, Side]
    arms: list[NDArray[np.int64]]
    tokens: NDArray[np.int64]
    seed: int

    @property
    def influence(self) -> NDArray[np.float64]:
        """The true reward of every sample [n]."""
        return self.scores.max(axis=1)


@dataclass(frozen=True)
class Run:
    """The selections of one trajectory, period by period."""

    periods: list[Replay]


@dataclass(frozen=True)
class Way:
    """A policy as it is replayed: the side information that it sees, the share that is audited, the limit."""

    policy: Policy | LinUcb
    side: str = "clusters"
    audit_fraction: float = 0.0
    cost_limit: float | None = COST_LIMIT


@dataclass(frozen=True)
class Measure:
    """Captured influence and recall of one selection, and its draws' share of the pool's tokens."""

    captured: float
    recall: float
    token_share: float


def pull(replay: Replay, way: Way, budget: int, *, attempt: int = 0) -> Audit:
    """Return what a policy draws, its audit after it."""
    n, side = len(replay.scores), replay.sides[way.side]
    costs = None
    if way.cost_limit is not None:
        costs = CostLimit(
            replay.tokens.astype(np.float64), way.cost_limit, share_of(TOP_FRACTION, n), draws=budget
        )
    audit_samples = share_of(way.audit_fraction, n)
    log = pull_arms(
        replay.arms,
        lambda rows: replay.scores[rows],
        policy=way.policy,
        budget_samples=budget - audit_samples,
        cold_start_fraction=min(0.05, 0.5 * (budget - audit_samples) / n),
        round_samples=ROUND_SAMPLES,
        context=side.context,
        prior=side.prior,
        rng=child_rng(replay.seed, "replay", str(attempt)),
        costs=costs,
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
        context=side.context,
        prior=side.prior,
        rng=child_rng(replay.seed, "audit", str(attempt)),
        costs=costs,
    )


def measure(replay: Replay, drawn: NDArray[np.int64]) -> Measure:
    """Return what the best k of the drawn samples are worth."""
    k = share_of(TOP_FRACTION, len(replay.scores))
    chosen = drawn[top_k(replay.influence[drawn], k)]
    return Measure(
        captured_influence(replay.influence, chosen, k),
        recall_at_k(replay.influence, chosen, k),
        float(replay.tokens[drawn].sum() / replay.tokens.sum()),
    )


def certificate_of(replay: Replay, audit: Audit, *, attempt: int = 0) -> Certificate:
    """Return what the audit says of recall and captured influence."""
    rewards = audit.log.rewards
    k = share_of(TOP_FRACTION, len(replay.scores))
    known, audited = rewards[: -audit.n_uniform], rewards[-audit.n_uniform :]
    rng = child_rng(replay.seed, "certificate", str(attempt))
    return certify(known, audited, audit.n_left, k=k, rng=rng)


def open_run(trajectory: Trajectory, states: States, *, seed: int) -> Run:
    """Return the selections of a trajectory with all side information that is compared."""
    features = trajectory.features.astype(np.float32)
    labels, _ = spherical_kmeans(features, CLUSTERS, rng=child_rng(seed, "clusters"))
    alone, half = (fold(features, width, seed=seed) for width in (CONTEXT_WIDTH, CONTEXT_WIDTH // 2))
    layers = states.pool.shape[1] - 1
    passes = {_layer_name(layer, layers): _state_side(states, layer) for layer in range(layers + 1)}
    states_side = passes[HIDDEN]
    assert states_side.context is not None, "states are side information"
    assert states_side.prior is not None, "states are side information"
    both = np.concatenate([balanced(half), balanced(states_side.context)], axis=1)
    periods: list[Replay] = []
    for period, scores in enumerate(trajectory.scores):
        prior = trajectory.prior(period)
        sides = {
            "clusters": Side(None, None, 1.0),
            GRADIENT: Side(both, np.concatenate([prior, on_scale_of(states_side.prior, prior)], axis=1), 1.0),
            ALONE: Side(alone, prior, 1.0),
            **passes,
        }
        arms = _arms(labels, seed * 100 + period)
        periods.append(Replay(scores, sides, arms, trajectory.tokens, seed))
    return Run(periods)


def _layer_name(layer: int, layers: int) -> str:
    if layer == layers:
        return HIDDEN
    return f"{HIDDEN}, layer {layer} of {layers}" if layer else "token embeddings"


def _state_side(states: States, layer: int) -> Side:
    """Return side information of the states after a layer, as a run makes it of the final ones."""
    pool, target = (_unit(part[:, layer].astype(np.float32)) for part in (states.pool, states.target))
    mean = pool.mean(axis=0, dtype=np.float64).astype(np.float32)
    prior = subtask_scores(_unit(pool - mean), _unit(target - mean), states.subtask)
    layers = states.pool.shape[1] - 1
    depth = 1.0 if layer == layers else layer * states.block_share
    return Side(pool - mean, prior, FORWARD * depth)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _arms(labels: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    return [
        child_rng(seed, "arm", str(arm)).permutation(np.flatnonzero(labels == arm)) for arm in range(CLUSTERS)
    ]


def replay_run(run: Run, way: Way, budget: int, *, attempt: int = 0) -> tuple[list[Measure], float]:
    """Return what a way's re-selections are worth, and the operations of the whole run over full selection's.

    A full gradient pass at the first checkpoint knows every influence there; without it, the first selection
    is drawn like the others.
    """
    found = [
        measure(case, pull(case, way, budget, attempt=attempt).log.samples)
        for case in _drawn_periods(run, way)
    ]
    side = run.periods[0].sides[way.side]
    total = side.first_pass + sum(item.token_share for item in found)
    return found[-(len(run.periods) - 1) :], total / len(run.periods)


def _drawn_periods(run: Run, way: Way) -> list[Replay]:
    return run.periods[1:] if run.periods[0].sides[way.side].first_pass >= 1.0 else run.periods


def replay_all(runs: Sequence[Run], way: Way, budget: int, *, attempts: int = 1) -> dict[str, float]:
    """Return the means of one way and budget over all runs and attempts."""
    began = time.process_time()
    found = [replay_run(run, way, budget, attempt=a) for run, a in itertools.product(runs, range(attempts))]
    measures = [item for some, _ in found for item in some]
    return {
        "captured_influence": round(float(np.mean([item.captured for item in measures])), 4),
        "recall": round(float(np.mean([item.recall for item in measures])), 4),
        "flops_over_full": round(float(np.mean([total for _, total in found])), 4),
        "replays": len(measures),
        "cpu_seconds_a_replay": round((time.process_time() - began) / len(measures), 2),
    }


def by_prior(runs: Sequence[Run], side: str, budget: int) -> dict[str, float]:
    """Return the means of drawing what the prior alone puts first."""
    found: list[Measure] = []
    for case in itertools.chain.from_iterable(run.periods[1:] for run in runs):
        prior = case.sides[side].prior
        assert prior is not None, "side information has a prior"
        found.append(measure(case, np.asarray(top_k(prior.max(axis=1), budget))))
    return {
        "captured_influence": round(float(np.mean([item.captured for item in found])), 4),
        "recall": round(float(np.mean([item.recall for item in found])), 4),
    }


def certified(cases: Sequence[Replay], way: Way, budget: int, *, attempts: int) -> dict[str, float]:
    """Return how often the certificates of audited draws cover the truth, and how wide they are."""
    covered: list[tuple[bool, bool]] = []
    widths: list[tuple[float, float]] = []
    for case, attempt in itertools.product(cases, range(attempts)):
        audit = pull(case, way, budget, attempt=attempt)
        truth, found = measure(case, audit.log.samples), certificate_of(case, audit, attempt=attempt)
        covered.append(
            (
                found.recall_low <= truth.recall <= found.recall_high,
                found.captured_low <= truth.captured <= found.captured_high,
            )
        )
        widths.append((found.recall_high - found.recall_low, found.captured_high - found.captured_low))
    recall, captured = np.mean(covered, axis=0)
    recall_width, captured_width = np.median(widths, axis=0)
    return {
        "replays": len(covered),
        "recall_coverage": round(float(recall), 4),
        "recall_median_width": round(float(recall_width), 3),
        "captured_coverage": round(float(captured), 4),
        "captured_median_width": round(float(captured_width), 3),
    }


def compare_policies(
    name: str, runs: Sequence[Run], *, samples: int, attempts: int
) -> list[dict[str, object]]:
    """Return one row a policy and budget: captured influence, recall and cost; the audited ones last."""
    ways = {policy: Way(variant) for policy, variant in CLUSTER_POLICIES.items()}
    ways |= {
        "linucb": Way(LinUcb(), GRADIENT),
        "linucb, no chance": Way(LinUcb(explore_fraction=0.0), GRADIENT),
        "linucb, no limit": Way(LinUcb(), GRADIENT, cost_limit=None),
        f"linucb, {ALONE}": Way(LinUcb(), ALONE),
        f"linucb, {HIDDEN}": Way(LinUcb(), HIDDEN),
        f"linucb, {HIDDEN}, no chance": Way(LinUcb(explore_fraction=0.0), HIDDEN),
        "linucb, audited": Way(LinUcb(), GRADIENT, AUDIT_FRACTION),
        f"linucb, {HIDDEN}, audited": Way(LinUcb(), HIDDEN, AUDIT_FRACTION),
        "ucb_beta, audited": Way(UcbBeta(), audit_fraction=AUDIT_FRACTION),
    }
    rows: list[dict[str, object]] = []
    for fraction in BUDGETS:
        budget = share_of(fraction, samples)
        for side in (GRADIENT, HIDDEN):
            rows.append(_row(name, f"prior only, {side}", fraction, by_prior(runs, side, budget)))
        for policy, way in ways.items():
            tries = attempts if way.audit_fraction else 1
            rows.append(_row(name, policy, fraction, replay_all(runs, way, budget, attempts=tries)))
    return rows


def draw_curve(name: str, runs: Sequence[Run], *, samples: int) -> list[dict[str, object]]:
    """Return one row a source of side information and budget: captured influence against total cost."""
    sides = [side for side in runs[0].periods[0].sides if side not in ("clusters", ALONE)]
    return [
        _row(
            name,
            f"linucb, {side}",
            fraction,
            replay_all(runs, Way(LinUcb(), side), share_of(fraction, samples)),
        )
        for side, fraction in itertools.product(sides, CURVE_BUDGETS)
    ]


def count_coverage(name: str, runs: Sequence[Run], *, samples: int, replays: int) -> list[dict[str, object]]:
    """Return one row a policy: how its certificates did over at least so many draws."""
    cases = [case for run in runs for case in run.periods[1:]]
    ways = {
        policy: Way(variant, audit_fraction=AUDIT_FRACTION) for policy, variant in CLUSTER_POLICIES.items()
    }
    ways |= {
        "linucb": Way(LinUcb(), GRADIENT, AUDIT_FRACTION),
        f"linucb, {HIDDEN}": Way(LinUcb(), HIDDEN, AUDIT_FRACTION),
    }
    attempts = -(-replays // len(cases))
    return [
        _row(
            name,
            policy,
            CERTIFIED_BUDGET,
            certified(cases, way, share_of(CERTIFIED_BUDGET, samples), attempts=attempts),
        )
        for policy, way in ways.items()
    ]


def _row(target: str, policy: str, fraction: float, measures: dict[str, float]) -> dict[str, object]:
    row = {"target": target, "policy": policy, "budget_fraction": fraction, **measures}
    print(*row.values(), sep="\t", flush=True)
    return row


def run_all(chosen: argparse.Namespace) -> dict[str, object]:
    """Replay everything and return the three tables."""
    policies: list[dict[str, object]] = []
    curve: list[dict[str, object]] = []
    certificates: list[dict[str, object]] = []
    for target in chosen.targets.split(","):
        runs: list[Run] = []
        for seed in range(chosen.seeds):
            shape = {"seed": seed, "samples": chosen.samples, "folder": chosen.folder}
            trajectory = open_trajectory(target, periods=chosen.periods, **shape)
            runs.append(open_run(trajectory, open_states(target, **shape), seed=seed))
        policies += compare_policies(target, runs, samples=chosen.samples, attempts=chosen.attempts)
        curve += draw_curve(target, runs, samples=chosen.samples)
        certificates += count_coverage(target, runs, samples=chosen.samples, replays=chosen.certificates)
    return {"policies": policies, "first_pass": curve, "certificates": certificates}


def main() -> None:
    """Read the command line, replay, and keep the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where trajectories are kept")
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--periods", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", default=",".join(VALIDATION_ROWS))
    parser.add_argument("--attempts", type=int, default=5, help="draws with an audit, a replay")
    parser.add_argument("--certificates", type=int, default=500, help="audited draws, a target and policy")
    parser.add_argument("--out", type=Path, help="results/selection-TARGETS.json where not given")
    chosen = parser.parse_args()
    out = chosen.out or RESULTS / f"selection-{chosen.targets.replace(',', '-')}.json"
    tables = run_all(chosen)
    result = {
        "benchmark": "selection",
        "date": today(),
        "command": "python benchmarks/selection.py "
        + " ".join(sys.argv[1:]).replace(str(chosen.folder), "FOLDER"),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions("clusterucb", "torch", "numpy", "scipy"),
        **tables,
    }
    write_result(out, result)


if __name__ == "__main__":
    main()
