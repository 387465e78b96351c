"""What is watched of a run while it is under way: its log, and the time that its stages take."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from clusterucb_core.planning import RunPlan
from clusterucb_core.stages.summary import Work
from clusterucb_core.store import PoolVersion
from clusterucb_core.tracks import RunFigures
from flows.run_log import run_log
from tasks.clock import StageClock, stage_clock


@dataclass(frozen=True)
class Watch:
    """The clock of a run, and what stands on every line of its log."""

    clock: StageClock
    facts: dict[str, Any]


@contextmanager
def watched(plan: RunPlan) -> Generator[Watch]:
    """Keep the log of a run and time its stages within the block."""
    home = Path(plan.workspace.home)
    with stage_clock() as clock, run_log(home, plan.run_id, flow_run_id=flow_run.id) as facts:
        yield Watch(clock, facts)


def note_versions(watch: Watch, versions: Sequence[Sequence[int]]) -> None:
    """Let the lines that follow name the selection versions: the run's own, and those of every target."""
    watch.facts["selection_version"] = versions[0][-1]
    watch.facts["selection_versions"] = [number for numbers in versions for number in numbers]


def figures_of(watch: Watch, pool: PoolVersion, work: Work) -> RunFigures:
    """Return what the run took so far."""
    seconds = time.monotonic() - watch.clock.began_at
    return RunFigures(pool=pool, work=work, seconds=seconds, stages=tuple(watch.clock.times.values()))
