"""Timing in alternation, peak memory, the machine's matrix rate and hardware facts: shared by the benchmarks.

Reads `/proc` where there is one; `peak_memory` resets the process's own peak there.
"""

import ctypes
import gc
import json
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Way:
    """One way to do the work.

    `run` does it once; `warm_up` is a cheaper first call (None: `run` itself); `rounds` is a limit of its own
    for a way that takes very long (None: all rounds).
    """

    name: str
    run: Callable[[], object]
    warm_up: Callable[[], object] | None = None
    rounds: int | None = None


@dataclass(frozen=True)
class Clock:
    """Wall and CPU seconds of one way, round by round."""

    wall: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])


def alternate(ways: Sequence[Way], *, rounds: int, device: torch.device) -> dict[str, Clock]:
    """Run every way once to warm up, then all of them in turn, round after round.

    Args:
        ways: what to time, in order; ways that are compared should be neighbours.
        rounds: how often each is timed.
        device: where they compute; a GPU is waited for.

    Returns:
        The seconds of each way by name.
    """
    for way in ways:
        (way.warm_up or way.run)()
    clocks = {way.name: Clock() for way in ways}
    for turn in range(rounds):
        for way in ways:
            if way.rounds is None or turn < way.rounds:
                _time_once(way, clocks[way.name], device)
    return clocks


def _time_once(way: Way, clock: Clock, device: torch.device) -> None:
    gc.collect()
    _synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    way.run()
    _synchronize(device)
    clock.wall.append(time.perf_counter() - wall)
    clock.cpu.append(time.process_time() - cpu)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest of some rounds, and how many there are."""
    return {
        "median": rounded(statistics.median(values)),
        "min": rounded(min(values)),
        "max": rounded(max(values)),
        "rounds": len(values),
    }


def rounded(value: float) -> float:
    """Return a figure with four significant digits: a timing holds no more."""
    return float(f"{value:.4g}")


def matrix_product(device: torch.device, dtype: torch.dtype, edge: int | None = None) -> tuple[Way, float]:
    """Return a way that multiplies square matrices, and the floating-point operations of one run.

    Args:
        device: where.
        dtype: precision of the matrices.
        edge: rows and columns; None takes what fills the device without taking long.
    """
    edge = edge or (8192 if device.type == "cuda" else 1536)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(edge, edge, generator=generator).to(device, dtype) for _ in range(2))
    repeats = 10

    def run() -> None:
        for _ in range(repeats):
            torch.mm(left, right)

    return Way("matrix product", run), 2.0 * edge**3 * repeats


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Return the bytes that a run takes at its peak above what is held before it.

    On a GPU that is allocated GPU memory, otherwise resident memory of this process: call it in a fresh
    process, where no memory is left over from other work.

    Args:
        run: the work.
        device: where it computes.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    _return_free_memory()
    _reset_resident_peak()
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def return_large_blocks_at_once() -> None:
    """Let the C library give every freed block of 64 KiB or more back to the system, in this process.

    By default it keeps some for later, more or less by accident; resident memory then says little of what was
    needed. Call it before the first large block is taken.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 64 * 1024)


def _return_free_memory() -> None:
    """Give freed memory back to the system: a run that fills it again would seem to take none."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_resident_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def _resident(key: str) -> int:
    with suppress(OSError):
        found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def hardware(device: torch.device) -> dict[str, Any]:
    """Return what a reader must know of the machine: processor, cores, memory, GPU, threads in use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "load_average": rounded(os.getloadavg()[0]),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_gib"] = round(properties.total_memory / 2**30)
        facts["tf32_matrix_products"] = torch.backends.cuda.matmul.allow_tf32
    return facts


def _cpu_model() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def hardware_slug(facts: Mapping[str, Any]) -> str:
    """Return a file-name part for a machine, such as `amd-epyc-2-cores` or `nvidia-h100-80gb-hbm3`."""
    name = facts["gpu"] if "gpu" in facts else f"{facts['cpu']} {facts['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def today() -> str:
    """Return the date in UTC, as YYYY-MM-DD."""
    return datetime.now(UTC).date().isoformat()


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write one result as JSON that a person can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
