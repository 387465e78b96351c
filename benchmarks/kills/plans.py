"""When and how the runs of a chain are killed: drawn by chance over what an undisturbed run does."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

# Moments that come again and again (see hook/sitecustomize.py), and those of the end of a run.
POINTS = ("draft made", "before rename", "after rename", "before commit", "after commit", "half a checkpoint")
LATE_POINTS = (
    "before report",
    "after report",
    "before sending",
    "after sending",
    "before result",
    "after result",
)
STARTING_SHARE, POINT_SHARE, WORKER_SHARE, LATE_SHARE = 0.1, 0.45, 0.6, 0.7
STARTING_CPU_S = 4.0
LONGEST_AWAY_S = 20.0


@dataclass(frozen=True)
class Timeline:
    """What an undisturbed run did.

    Attributes:
        finished_s: when each artifact was finished, in seconds from the run's beginning, ascending.
        total_s: when the run ended.
        cpu_share: CPU seconds of a second: little on a machine that did much else.
    """

    finished_s: Sequence[float]
    total_s: float
    cpu_share: float = 1.0

    def place(self, at_s: float) -> tuple[int, float]:
        """Return how many artifacts were finished at a time, and the CPU seconds since the last of them."""
        count = bisect_right(self.finished_s, at_s)
        return count, self.cpu_share * (at_s - (self.finished_s[count - 1] if count else 0.0))


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        kind: `starting` (before the run has begun to work), `time` or `point`.
        victim: `flow`, `worker` (a process that computes shards) or a service; of a point whoever reaches it.
        finished: artifacts that must be finished first.
        rest_s: CPU seconds after that, or from the start of a `starting` one.
        point: the moment, where it is chosen.
        patient: whether to wait for the point until the run ends.
        away_s: how long a service stays away.
    """

    kind: str
    victim: str
    finished: int
    rest_s: float
    point: str = ""
    patient: bool = False
    away_s: float = 0.0


def draw_kills(rng: np.random.Generator, timeline: Timeline, *, count: int, has_workers: bool) -> list[Kill]:
    """Return the kills of a chain in order.

    The times are uniform over what an undisturbed run takes, and ascend: each run of a chain goes on from the
    one before. The last one is often at the end of a run, where it reports, sends and keeps its result.

    Args:
        rng: what draws.
        timeline: of the undisturbed run.
        count: how many.
        has_workers: whether other processes than the run's own compute shards.
    """
    times = np.sort(rng.uniform(0, timeline.total_s, count))
    kills = [_draw(rng, *timeline.place(float(time)), has_workers=has_workers) for time in times]
    if rng.random() < LATE_SHARE:
        late = str(rng.choice(LATE_POINTS))
        kills[-1] = replace(kills[-1], kind="point", victim="flow", rest_s=0.0, point=late, patient=True)
    return kills


def draw_service_kills(
    rng: np.random.Generator, timeline: Timeline, *, count: int, services: Sequence[str]
) -> list[Kill]:
    """Return kills of services in turn, at times that are uniform over what an undisturbed run takes."""
    times = np.sort(rng.uniform(0, timeline.total_s, count))
    return [
        Kill(
            "time",
            services[number % len(services)],
            *timeline.place(float(time)),
            away_s=float(rng.uniform(0, LONGEST_AWAY_S)),
        )
        for number, time in enumerate(times)
    ]


def _draw(rng: np.random.Generator, finished: int, rest_s: float, *, has_workers: bool) -> Kill:
    share = rng.random()
    if share < STARTING_SHARE:
        return Kill("starting", "flow", 0, float(rng.uniform(0, STARTING_CPU_S)))
    if share < STARTING_SHARE + POINT_SHARE:
        return Kill("point", "flow", finished, 0.0, str(rng.choice(POINTS)))
    worker = has_workers and rng.random() < WORKER_SHARE
    return Kill("time", "worker" if worker else "flow", finished, rest_s)
