"""Progress of long tasks as log lines: done of total, rate and time left, at most one every few seconds.

Whoever wants to show it otherwise listens to `BEGUN_AND_OVER`, which names each task when it begins and when
it is over, and looks at it in between. Where a task counts what it has done, it also stops if it is asked to.
"""

import logging
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Event
from typing import TypeVar

from clusterucb_core.errors import RunStopped

REPORT_EVERY_S = 5.0
IN_RECORD = "pace"
# Quiet unless somebody listens: its records, at the level DEBUG, hold the task as `pace`.
BEGUN_AND_OVER = logging.getLogger(f"{__name__}.tasks")
Item = TypeVar("Item")

_STOP: ContextVar[Event | None] = ContextVar("stop", default=None)


@dataclass
class Pace:
    """How far a long task has come.

    Attributes:
        log: where its lines go.
        what: the task.
        unit: what it counts.
        total: how many there are, None where nobody knows before the end.
        done: how many are done; it grows.
        began_at: when the task began, on the monotonic clock.
        reported_at: when its last line was written; none was, before it has lasted long enough for one.
        is_over: whether it has come to its end.
    """

    log: logging.Logger
    what: str
    unit: str
    total: int | None
    done: int = 0
    began_at: float = field(default_factory=time.monotonic)
    reported_at: float = field(default_factory=time.monotonic)
    is_over: bool = False

    def __post_init__(self) -> None:
        _name(self)


@contextmanager
def stopped_by(asked: Event) -> Generator[None]:
    """Let the tasks of this block, also those in threads that inherit its context, stop once this is set."""
    token = _STOP.set(asked)
    try:
        yield
    finally:
        _STOP.reset(token)


def advance(pace: Pace, count: int = 1, detail: str = "") -> None:
    """Count what has been done, and log where it has come to where the last line is some seconds old.

    Args:
        pace: the task.
        count: how many more are done.
        detail: what else there is to tell.

    Raises:
        RunStopped: the task has been asked to stop.
    """
    asked = _STOP.get()
    if asked is not None and asked.is_set():
        raise RunStopped(f"{pace.what} was stopped; what was finished before is kept, run again to go on")
    pace.done += count
    if pace.done == pace.total:
        finish(pace)
    now = time.monotonic()
    if now - pace.reported_at < REPORT_EVERY_S:
        return
    pace.reported_at = now
    counted = pace_text(pace.done, pace.total, unit=pace.unit, seconds=now - pace.began_at)
    pace.log.info("%s: %s%s", pace.what, counted, f"; {detail}" if detail else "", extra={IN_RECORD: pace})


def finish(pace: Pace) -> None:
    """Say that a task is over; needed where it may end before it has counted its total, or has none."""
    if not pace.is_over:
        pace.is_over = True
        _name(pace)


def paced(items: Iterable[Item], pace: Pace) -> Iterator[Item]:
    """Yield items, and count each as done when the next one is asked for."""
    for item in items:
        yield item
        advance(pace)


def pace_of(record: logging.LogRecord) -> Pace | None:
    """Return the task whose progress a log record tells of; None where it tells something else."""
    return record.__dict__.get(IN_RECORD)


def pace_text(done: int, total: int | None, *, unit: str, seconds: float) -> str:
    """Return a text such as `1,200 of 4,800 samples, 85/s, 42 s left`.

    Args:
        done: how many are done.
        total: how many there are, None where it is not known.
        unit: what is counted.
        seconds: the time that it took so far.
    """
    rate = done / max(seconds, 1e-9)
    text = f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"
    text += f", {rate:,.0f}/s" if rate >= 10 else f", {rate:.2g}/s"
    if total is None or not 0 < done < total:
        return text
    return f"{text}, {duration_text((total - done) / rate)} left"


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _name(pace: Pace) -> None:
    BEGUN_AND_OVER.debug("%s", pace.what, extra={IN_RECORD: pace})
