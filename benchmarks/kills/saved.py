"""Saved states of a long run, each left by a kill, and kills that start from one and cost one stretch only.

Writes copies of a state folder; finished artifacts, which nothing changes in place, are hard links.
"""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kills.chains import Chain, Place, fresh, look, place_in, strike
from kills.plans import Kill, Timeline
from kills.states import final_state, finished_artifacts, stray_files

STRETCH_S = 1800.0


def stretches(timeline: Timeline, count: int) -> list[float]:
    """Return the beginnings of so many stretches of a run, of equal length in time; the first is 0."""
    return [timeline.total_s * number / count for number in range(count)]


def save_states(chain: Chain, timeline: Timeline, *, count: int, folder: Path) -> None:
    """Kill one run at the beginning of every stretch but the first, and save what it left each time.

    Raises:
        RuntimeError: the run ended before.
    """
    copy_state(chain.place.home, fresh(folder / "0").home)
    for number, at_s in enumerate(stretches(timeline, count)[1:], start=1):
        finished, _ = timeline.place(at_s)
        attempt = chain.forge.start(chain.arguments)
        if strike(chain, attempt, Kill("time", "flow", finished, 0.0)) is None:
            raise RuntimeError(f"the run ended before its stretch {number}")
        copy_state(chain.place.home, fresh(folder / str(number)).home)


def copy_state(source: Path, home: Path) -> None:
    """Copy a state folder that no process uses; artifacts become hard links."""
    for path in source.iterdir():
        if path.name == "artifacts":
            shutil.copytree(path, home / path.name, copy_function=os.link)
        elif path.is_dir():
            shutil.copytree(path, home / path.name)
        else:
            shutil.copy2(path, home / path.name)


def kill_in_stretch(
    chain: Chain, kill: Kill, reference: dict[str, Any], *, end: Path | None
) -> dict[str, Any]:
    """Kill in a stretch, start again, and see that its end is that of an undisturbed run.

    Args:
        chain: a copy of the saved state at the beginning of the stretch.
        kill: how and when.
        reference: what an undisturbed run left.
        end: the saved state at the end of the stretch; None where the run ends with it.

    Returns:
        The record of the kill.
    """
    attempt = chain.forge.start(chain.arguments)
    record = strike(chain, attempt, kill)
    if record is None:
        return {"missed": True}
    if not attempt.alive():
        attempt = chain.forge.start(chain.arguments)
    root = chain.place.home / "artifacts"
    wanted = (
        set() if end is None else {key for key, _ in finished_artifacts(place_in(end).home / "artifacts")}
    )
    deadline = time.monotonic() + STRETCH_S
    while attempt.alive() and time.monotonic() < deadline:
        attempt.look()
        if end is not None and wanted <= {key for key, _ in finished_artifacts(root)}:
            attempt.kill()
        time.sleep(0.2)
    if attempt.code not in (0, -9):
        chain.findings.append(f"the run did not reach the end of its stretch: {chain.forge.words()}")
        if attempt.alive():
            attempt.kill()
    chain.findings += look(chain, attempt, {})
    chain.findings += stray_files(reference["final"], chain.place.home)
    if end is None and final_state(chain.place.home) != reference["final"]:
        chain.findings.append("the final selection, or what it rests on, is another")
    return {**record, "findings": chain.findings, "to_the_end": end is None}


def copied_place(folder: Path, saved: Path) -> Place:
    """Return the places of a chain that starts from a saved state."""
    place = fresh(folder)
    copy_state(place_in(saved).home, place.home)
    return place


def saved_states(folder: Path, count: int) -> Sequence[Path] | None:
    """Return the saved states of a folder, None where they are not all there."""
    found = [folder / str(number) for number in range(count)]
    return found if all((path / "home").is_dir() for path in found) else None
