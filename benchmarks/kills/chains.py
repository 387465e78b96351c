"""A chain: one run that is killed again and again and always started anew, until it is left to end.

Writes the state folder of the chain, and beside it the logs of its runs.
"""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import duckdb
import psutil

from clusterucb_core.trails import newest_trails
from clusterucb_core.workspace import Workspace
from kills.attempts import Attempt, Forge
from kills.plans import Kill, Timeline
from kills.servers import LocalStack
from kills.states import (
    State,
    catalog_findings,
    differences,
    final_state,
    finished_artifacts,
    lock_findings,
    read_state,
    recomputed,
)

ATTEMPT_S = 900.0
POINT_CPU_S = 5.0
# after a worker was killed, for as long the run is watched before the next kill
GRACE_S = 5.0
FEATURES = "features/"
# one pass over samples writes their gradients and, where they are wanted, their hidden states
SHARDS_OF_A_PASS = 2


@dataclass(frozen=True)
class Place:
    """Where a chain happens.

    Attributes:
        home: the state folder.
        scratch: the folder of temporary files.
        armed: the file that arms a point.
    """

    home: Path
    scratch: Path
    armed: Path


def place_in(folder: Path) -> Place:
    """Return the places of a chain in its folder."""
    return Place(folder / "home", folder / "tmp", folder / "armed")


@dataclass
class Chain:
    """A chain under way.

    Attributes:
        place: where.
        forge: what starts its runs.
        arguments: the command.
        workers: how many shards are computed at a time.
        state: what lay in the state folder after the last kill.
        stack: the services, where they are among the victims.
        findings: what is wrong, so far.
    """

    place: Place
    forge: Forge
    arguments: Sequence[str]
    workers: int
    state: State
    stack: LocalStack | None = None
    findings: list[str] = field(default_factory=list[str])


def run_undisturbed(place: Place, forge: Forge, arguments: Sequence[str]) -> dict[str, Any]:
    """Run without a kill; return its timeline and what it left.

    Raises:
        RuntimeError: it failed.
    """
    attempt = forge.start(arguments)
    began, cpu = time.time(), [0.0, 0.0]
    while attempt.alive():
        attempt.look()
        used = _cpu_s(attempt)
        if attempt.begun_at is None:
            began, cpu[0] = time.time(), used
        cpu[1] = max(cpu[1], used)
        time.sleep(0.2)
    total = time.time() - began
    if attempt.code != 0:
        raise RuntimeError(f"the undisturbed run ended with {attempt.code}: {forge.words()}")
    manifests = [folder / "manifest.json" for _, folder in finished_artifacts(place.home / "artifacts")]
    times = sorted(max(0.0, path.stat().st_mtime - began) for path in manifests)
    state = read_state(place.home, place.scratch)
    return {
        "finished_s": times,
        "total_s": total,
        "cpu_share": (cpu[1] - cpu[0]) / total,
        "left": {"drafts": len(state.drafts), "leftovers": sorted(state.leftovers)},
        "final": final_state(place.home),
        **_identity(place),
    }


def run_chain(
    chain: Chain, kills: Sequence[Kill], reference: dict[str, Any], *, note: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Kill as planned, let the run end, and compare what it left.

    Args:
        chain: what is killed.
        kills: how and when.
        reference: what an undisturbed run left.
        note: takes the record of each kill.

    Returns:
        The record of the chain; its `findings` are empty where all is well.
    """
    attempt: Attempt | None = None
    made = 0
    for number, kill in enumerate(kills, start=1):
        if attempt is None or not attempt.alive():
            attempt = chain.forge.start(chain.arguments)
        record = strike(chain, attempt, kill)
        if record is None and attempt.code != 0:  # what was struck before has ended it: the kill is still due
            attempt = chain.forge.start(chain.arguments)
            record = strike(chain, attempt, kill)
        if record is None:
            break  # the run ended before: there is nothing left to kill
        made += 1
        note({"number": number, **asdict(kill), **record})
    ended = _finish(chain, attempt)
    try:
        chain.findings += differences(reference["final"], final_state(chain.place.home))
    except duckdb.Error as error:
        chain.findings.append(f"the catalog of the run cannot be read: {error}")
    own = _identity(chain.place)
    chain.findings += [f"{key} is another" for key in own if own[key] != reference[key]]
    chain.findings += [f"{name} is left of the run" for name in chain.state.drafts]
    return {"kills": made, **ended, "findings": chain.findings, "leftovers": chain.state.leftovers}


def strike(chain: Chain, attempt: Attempt, kill: Kill) -> dict[str, Any] | None:
    """Wait for the moment, kill, and look; return the record, or None where the run ended before.

    It may end well, or fail because of what was struck before; any other end is a finding.
    """
    victim, at_point = _kill_when_due(chain, attempt, kill)
    if victim is None:
        if attempt.code != 0:
            words = f"the run ended by itself with {attempt.code}: {chain.forge.words()}"
            chain.findings += [*([] if attempt.strikes else [words]), *look(chain, attempt, {})]
        return None
    if victim != "flow":
        attempt.strikes += 1
        attempt.wait(GRACE_S)
    record: dict[str, Any] = {
        "at_point": at_point,
        "struck": victim,
        "starting_s": _since(attempt.started_at, attempt.begun_at),
        "working_s": _since(attempt.begun_at, time.monotonic()),
        "goes_on": attempt.code is None,
    }
    record["findings"] = [] if attempt.code is None else look(chain, attempt, record)
    if attempt.code not in (None, -9):
        record["words"] = chain.forge.words()[-300:]
    chain.findings += record["findings"]
    return record


def look(chain: Chain, attempt: Attempt, record: dict[str, Any]) -> list[str]:
    """Return what is wrong in the state folder of a dead run; note in the record what its end has cost."""
    findings = [f"{name} outlived the run" for name in attempt.left_running()]
    now = read_state(chain.place.home, chain.place.scratch)
    findings += recomputed(chain.state, now)
    findings += catalog_findings(chain.place.home) + lock_findings(chain.place.home)
    lost = sorted(set(now.drafts) - set(chain.state.drafts))
    shards = [name for name in lost if name.startswith(FEATURES)]
    begun = len(lost) - len(shards) + ceil(len(shards) / SHARDS_OF_A_PASS)
    if begun > chain.workers + attempt.strikes:
        findings.append(
            f"{len(lost)} artifacts were lost, with {chain.workers} workers and {attempt.strikes} kills "
            f"before that of the run: {lost}"
        )
    record |= {
        "finished_now": len(now.finished),
        "lost_shards": len(shards),
        "lost_others": [name.split("/")[0] for name in lost if name not in shards],
        "drafts": len(now.drafts),
        "draft_bytes": sum(now.drafts.values()),
        "leftovers": len(now.leftovers),
        "leftover_bytes": sum(now.leftovers.values()),
    }
    chain.state = now
    return findings


def _kill_when_due(chain: Chain, attempt: Attempt, kill: Kill) -> tuple[str | None, bool]:
    """Return who was killed, None where the run ended first, and whether that was at the chosen point."""
    armed = chain.place.armed
    due = _due(chain, attempt, kill)
    if due and kill.kind == "point":
        armed.write_text(kill.point, "utf-8")
        hit = _hit(attempt, armed, seconds=None if kill.patient else POINT_CPU_S)
        armed.unlink(missing_ok=True)
        if hit is not None:
            return hit, True
    if not attempt.alive():
        return None, False
    if chain.stack is not None and kill.victim in chain.stack.SERVICES:
        _kill_service(chain.stack, attempt, kill)
        return kill.victim, False
    workers = attempt.workers() if kill.victim == "worker" else []
    if workers:
        with suppress(psutil.NoSuchProcess):
            random.choice(workers).kill()
            return "worker", False
    attempt.kill()
    return "flow", False


def _kill_service(stack: LocalStack, attempt: Attempt, kill: Kill) -> None:
    """Kill a service, and start it again a while later; the run may go on meanwhile, or fail."""
    stack.kill(kill.victim)
    attempt.wait(kill.away_s)
    stack.bring("up")


def _due(chain: Chain, attempt: Attempt, kill: Kill) -> bool:
    """Wait until a kill is due; return False where the run ended, or went on for too long, before."""
    deadline, root = time.monotonic() + ATTEMPT_S, chain.place.home / "artifacts"
    since: float | None = None
    while attempt.alive():
        if time.monotonic() > deadline:
            chain.findings.append(f"a run hung for {ATTEMPT_S:g} s: {chain.forge.words()}")
            return False
        begun = kill.kind == "starting" or attempt.begun_at is not None
        if since is None and begun and (not kill.finished or len(finished_artifacts(root)) >= kill.finished):
            since = _cpu_s(attempt)
        if since is not None and _cpu_s(attempt) - since >= kill.rest_s:
            return True
        time.sleep(0.03)
    return False


def _hit(attempt: Attempt, armed: Path, *, seconds: float | None) -> str | None:
    """Return who died at an armed point; None where nobody came there while the run had so much CPU time."""
    hit, began = armed.with_name(f"{armed.name}.hit"), _cpu_s(attempt)
    deadline = time.monotonic() + ATTEMPT_S
    while not hit.exists() and attempt.alive() and time.monotonic() < deadline:
        if seconds is not None and _cpu_s(attempt) - began > seconds:
            break
        time.sleep(0.02)
    if not hit.exists():
        return None
    own = f'"pid": {attempt.process.pid}}}'
    time.sleep(0.1)  # its last words are written, and the signal is on its way
    victim = "flow" if own in hit.read_text("utf-8") else "worker"
    hit.unlink()
    if victim == "flow":
        attempt.wait(GRACE_S)
    return victim


def _finish(chain: Chain, attempt: Attempt | None) -> dict[str, Any]:
    """Let a run end; return its time, and start it once more where it had to fail."""
    for _ in range(2):
        if attempt is None or not attempt.alive():
            attempt = chain.forge.start(chain.arguments)
        while attempt.alive() and time.monotonic() - attempt.started_at < ATTEMPT_S:
            attempt.look()
            time.sleep(0.2)
        if attempt.code is None:
            chain.findings.append(f"the last run hung for {ATTEMPT_S:g} s: {chain.forge.words()}")
            attempt.kill()
        chain.findings += look(chain, attempt, record := {})
        if attempt.code == 0:
            return {
                "last_run_s": round(time.monotonic() - attempt.started_at, 1),
                "finished": record["finished_now"],
            }
    chain.findings.append(
        f"the last run ended with {attempt.code if attempt else None}: {chain.forge.words()}"
    )
    return {"last_run_s": None}


def _cpu_s(attempt: Attempt) -> float:
    total = 0.0
    for process in (attempt.process, *attempt.seen):
        with suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            total += used.user + used.system
    return total


def _since(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 2)


def _identity(place: Place) -> dict[str, str]:
    """Return what names a run and its selection."""
    trails = newest_trails(Workspace(home=str(place.home)))
    return {"run_id": trails[0].run_id if trails else "nothing is left that a re-selection could follow"}


def fresh(folder: Path) -> Place:
    """Return the places of a chain, all of them empty."""
    shutil.rmtree(folder, ignore_errors=True)
    place = place_in(folder)
    place.home.mkdir(parents=True)
    place.scratch.mkdir()
    return place


def timeline_of(reference: dict[str, Any]) -> Timeline:
    """Return the timeline that `run_undisturbed` has kept."""
    return Timeline(
        tuple(reference["finished_s"]), float(reference["total_s"]), float(reference["cpu_share"])
    )
