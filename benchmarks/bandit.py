"""How long a bandit takes to decide: ours, and the straight way that recomputes every bound for every pull.

Rewards are made up and cost nothing, so that only decisions are timed, on one core. Both ways play the same
instances where the straight way can finish, and must draw the same samples there; its time at the full size
is extrapolated as `a x pulls + b x pulls^2` through two measured sizes, which is what reading the whole
history at every pull takes. The contextual policy is timed with its peak memory, the context included.

    python benchmarks/bandit.py [--samples 400000] [--arms 200] [--pulls 80000]
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from measuring import hardware, today, versions, write_result
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clusterucb_core.bandit.policies import LinUcb, UcbBeta
from clusterucb_core.bandit.pulls import cold_start_counts, pull_arms

COLD_START, BETA = 0.05, 1.0
WIDTH, ROUNDS, SUBTASKS = 512, 40, 4

Rewards = NDArray[np.float64]
Arms = list[NDArray[np.int64]]


def instance(samples: int, arms: int, *, seed: int = 0) -> tuple[Arms, Rewards]:
    """Return arms of unlike sizes and the reward of every sample: each arm has a level and a spread."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(arms, size=samples, p=rng.dirichlet(np.full(arms, 5.0)))
    rewards = rng.normal(size=arms)[labels] + rng.uniform(0.2, 1.0, size=arms)[labels] * rng.normal(
        size=samples
    )
    return [rng.permutation(np.flatnonzero(labels == arm)) for arm in range(arms)], rewards


def ours(arms: Arms, rewards: Rewards, pulls: int) -> NDArray[np.int64]:
    """Return the samples that the paper's rule draws, one a pull, with running sums."""
    log = pull_arms(
        arms,
        lambda rows: rewards[rows],
        policy=UcbBeta(beta=BETA),
        budget_samples=pulls,
        cold_start_fraction=COLD_START,
        round_samples=1,
        rng=np.random.default_rng(0),
    )
    return log.samples.astype(np.int64)


def straight(arms: Arms, rewards: Rewards, pulls: int) -> NDArray[np.int64]:
    """Return the samples that the paper's rule draws, every bound computed from all rewards at every pull."""
    first = cold_start_counts([len(arm) for arm in arms], COLD_START)
    histories = [rewards[arm[:n]].tolist() for arm, n in zip(arms, first, strict=True)]
    drawn = [int(sample) for arm, n in zip(arms, first, strict=True) for sample in arm[:n]]
    while len(drawn) < pulls:
        bounds = [
            np.mean(seen) + BETA * np.std(seen) if len(seen) < len(arm) else -np.inf
            for arm, seen in zip(arms, histories, strict=True)
        ]
        best = int(np.argmax(bounds))
        sample = int(arms[best][len(histories[best])])
        histories[best].append(float(rewards[sample]))
        drawn.append(sample)
    return np.array(drawn)


def compare(samples: int, arms: int, pulls: int) -> dict[str, object]:
    """Return the times of both ways, the straight one's extrapolated."""
    times: list[tuple[int, float, float]] = []
    for share in (0.05, 0.1):
        few, some = round(share * samples), round(share * pulls)
        places, rewards = instance(few, arms)
        began = time.process_time()
        fast = ours(places, rewards, some)
        middle = time.process_time()
        slow = straight(places, rewards, some)
        times.append((some, middle - began, time.process_time() - middle))
        if not np.array_equal(fast, slow):
            raise AssertionError(f"the two ways drew other samples from {few} samples, {some} pulls")
    (n1, _, t1), (n2, _, t2) = times
    quadratic = (t2 / n2 - t1 / n1) / (n2 - n1)
    linear = t1 / n1 - quadratic * n1
    places, rewards = instance(samples, arms)
    began = time.process_time()
    ours(places, rewards, pulls)
    seconds = time.process_time() - began
    expected = linear * pulls + quadratic * pulls**2
    return {
        "samples": samples,
        "arms": arms,
        "pulls": pulls,
        "ours_seconds": round(seconds, 3),
        "straight_measured": [
            {"pulls": n, "ours_seconds": round(a, 3), "straight_seconds": round(b, 3)} for n, a, b in times
        ],
        "straight_seconds_extrapolated": round(expected),
        "straight_over_ours": round(expected / seconds),
    }


def contextual(samples: int, pulls: int) -> dict[str, object]:
    """Return time and memory of the contextual policy over a context of the whole pool."""
    rng = np.random.default_rng(0)
    context = rng.normal(size=(samples, WIDTH)).astype(np.float32)
    weights = rng.normal(size=(WIDTH, SUBTASKS)).astype(np.float32)
    scores = context @ weights + rng.normal(size=(samples, SUBTASKS))
    prior = context[:, :64] @ weights[:64]
    began = time.process_time()
    pull_arms(
        [np.arange(samples)],
        lambda rows: scores[rows],
        policy=LinUcb(),
        budget_samples=pulls,
        round_samples=-(-pulls // ROUNDS),
        context=context,
        prior=prior,
        rng=rng,
    )
    return {
        "samples": samples,
        "width": WIDTH,
        "subtasks": SUBTASKS,
        "rounds": ROUNDS,
        "pulls": pulls,
        "seconds": round(time.process_time() - began, 1),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Read the command line, time both, and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--arms", type=int, default=200)
    parser.add_argument("--pulls", type=int, default=80_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bandit.json")
    chosen = parser.parse_args()
    with threadpool_limits(limits=1):
        result = {
            "benchmark": "bandit",
            "date": today(),
            "command": "python benchmarks/bandit.py " + " ".join(sys.argv[1:]),
            "hardware": hardware(torch.device("cpu")),
            "versions": versions("clusterucb", "numpy"),
            "ucb_beta": compare(chosen.samples, chosen.arms, chosen.pulls),
            "linucb": contextual(chosen.samples, chosen.pulls),
        }
    print(*(f"{name}: {result[name]}" for name in ("ucb_beta", "linucb")), sep="\n")
    write_result(chosen.out, result)


if __name__ == "__main__":
    main()
