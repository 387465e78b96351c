"""Times the stages of one call of the pipeline, and counts the calls that found their work done.

The clock of the flow run that is under way is found by a context variable: a stage task that ends in the
flow's own process adds to it. Those of a fan-out may end in other processes, so the flow times them as one.
"""

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from clusterucb_core.pacing import duration_text
from clusterucb_core.records import StageTime

logger = logging.getLogger(__name__)

CACHED = "Cached"


@dataclass
class StageClock:
    """The times of stages so far, by stage, in the order in which they first ended; it grows.

    `began_at` is on the monotonic clock.
    """

    began_at: float = field(default_factory=time.monotonic)
    times: dict[str, StageTime] = field(default_factory=dict[str, StageTime])


_CLOCK: ContextVar[StageClock | None] = ContextVar("stage_clock", default=None)


@contextmanager
def stage_clock() -> Generator[StageClock]:
    """Give the clock that the stages of this block add to."""
    clock = StageClock()
    token = _CLOCK.set(clock)
    try:
        yield clock
    finally:
        _CLOCK.reset(token)


def clocked(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> None:
    """Add a completed task run to the clock; a hook of the stage tasks."""
    assert task_run.start_time is not None, "a completed task run has begun"
    seconds = (state.timestamp - task_run.start_time).total_seconds()
    add_time(task.name, calls=1, cached=int(state.name == CACHED), seconds=seconds)


def add_time(stage: str, *, calls: int, cached: int, seconds: float) -> None:
    """Add calls of a stage to the clock of the run under way; without one nothing is added."""
    clock = _CLOCK.get()
    if clock is None:
        return
    before = clock.times.get(stage, StageTime(stage=stage, calls=0, cached=0, seconds=0.0))
    clock.times[stage] = StageTime(
        stage=stage,
        calls=before.calls + calls,
        cached=before.cached + cached,
        seconds=before.seconds + seconds,
    )
    if cached < calls:
        logger.info("%s took %s", stage, duration_text(seconds))
