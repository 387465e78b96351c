"""The ways to compute per-sample features that are compared: floor, ours, LESS's loop, bergson's modes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import bergson_modes
import numpy as np
import torch
from bergson_modes import BergsonMode
from gradient_workload import Workload, WorkloadSettings, batch_loss, build_workload, matrix_parameters
from less_loop import COLLECTED, DenseProjection, less_features
from measuring import Way, peak_memory, return_large_blocks_at_once

from clusterucb_core.features.batches import plan_batches
from clusterucb_core.features.engine import GradientEngine
from clusterucb_core.features.gradients import iter_gradient_features
from clusterucb_core.features.projections import Projection, RollSketch
from clusterucb_core.lm.token_budget import CPU_BATCH_TOKENS

GROUPS = ("floor", "ours", "auto", "stages", "less", "bergson")
FLOOR = "floor"
_SLOW_ROUNDS = 2  # a way that takes many times the floor is timed at most so often
_RAW_LIMIT_BYTES = 8 * 2**30  # unprojected gradients that are held at once
_SEED = 0


@dataclass(frozen=True)
class Choice:
    """Which ways to build: groups of `GROUPS`, dimensions, how much of the work the slow ones do, threads."""

    groups: tuple[str, ...] = GROUPS
    dims: tuple[int, ...] = (1024, 2048, 8192)
    less_samples: int = COLLECTED
    bergson_batches: int = 2
    threads: int = 1


@dataclass(frozen=True)
class FeatureWay:
    """A way and its group, how many times its work makes up the whole, and its dimensions.

    `share` is the part of the work that a run does: 1, or less for a way that is timed on a part and
    extrapolated. `dim` is that of a feature (None: not projected, or module by module).
    """

    group: str
    way: Way
    share: float = 1.0
    dim: int | None = None

    @property
    def name(self) -> str:
        """Return the way's name."""
        return self.way.name


@dataclass(frozen=True)
class Skipped:
    """A way that is not timed, and why."""

    name: str
    reason: str


def build_ways(workload: Workload, choice: Choice) -> tuple[list[FeatureWay], list[Skipped]]:
    """Return the ways to time, compared ones side by side, and what is left out."""
    ways: list[FeatureWay] = []
    skipped: list[Skipped] = []
    for group in GROUPS:
        if group not in choice.groups:
            continue
        for found in _GROUP_WAYS[group](workload, choice):
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                ways.append(found)
    return ways, skipped


def _floor(workload: Workload, _choice: Choice) -> Iterator[FeatureWay]:
    def run() -> None:
        for samples in workload.batched_samples():
            batch_loss(workload.model, samples).backward()
            workload.model.zero_grad(set_to_none=True)

    yield FeatureWay(FLOOR, Way(FLOOR, run))


def _ours(workload: Workload, choice: Choice) -> Iterator[FeatureWay]:
    for dim in choice.dims:
        run = _our_features(workload, RollSketch(dim=dim, seed=_SEED))
        yield FeatureWay("ours", Way(f"ours to {dim}", run), dim=dim)


def _ours_in_auto_batches(workload: Workload, choice: Choice) -> Iterator[FeatureWay]:
    if workload.device.type == "cuda":
        return  # auto follows from a configuration on disk there
    settings = replace(workload.settings, batch_tokens=CPU_BATCH_TOKENS)
    lengths = np.array([len(sample.input_ids) for sample in workload.samples], dtype=np.int64)
    batches = plan_batches(lengths, max_batch_tokens=CPU_BATCH_TOKENS)
    rebatched = replace(workload, settings=settings, batches=batches)
    for way in _ours(rebatched, choice):
        yield replace(way, group="auto", way=replace(way.way, name=f"{way.name}, {CPU_BATCH_TOKENS} tokens"))


def _our_features(workload: Workload, projection: Projection) -> Callable[[], None]:
    def run() -> None:
        stream = iter_gradient_features(
            workload.model,
            workload.samples,
            workload.batches,
            moments=workload.moments,
            projection=projection,
        )
        for batch in stream:
            assert not batch.excluded, batch.excluded[0]

    return run


def _stages(workload: Workload, choice: Choice) -> Iterator[FeatureWay | Skipped]:
    """Yield the engine alone, with one thing more each time; features stay where they are computed."""
    largest = max(len(batch) for batch in workload.batches)
    raw_bytes = 4 * largest * matrix_parameters(workload.model)[1]
    for name, moments in (("hooks", None), ("hooks + Adam", workload.moments)):
        if raw_bytes > _RAW_LIMIT_BYTES:
            yield Skipped(name, f"unprojected gradients of a batch take {raw_bytes / 2**30:.0f} GiB")
            continue
        engine = GradientEngine(workload.model, moments)
        yield FeatureWay("stages", Way(name, _engine_pass(workload, engine)))
    for dim in choice.dims:
        engine = GradientEngine(workload.model, workload.moments, RollSketch(dim=dim, seed=_SEED))
        way = Way(f"hooks + Adam + sketch to {dim}", _engine_pass(workload, engine))
        yield FeatureWay("stages", way, dim=dim)


def _engine_pass(workload: Workload, engine: GradientEngine) -> Callable[[], None]:
    def run() -> None:
        for samples in workload.batched_samples():
            engine.gradients(samples)

    return run


def _less(workload: Workload, choice: Choice) -> Iterator[FeatureWay]:
    samples = workload.spread_samples(choice.less_samples)

    def runner(projection: DenseProjection, count: int) -> Callable[[], object]:
        return lambda: less_features(workload.model, samples[:count], workload.moments, projection=projection)

    for dim in choice.dims:
        for draw, label in (("bernoulli", ""), ("bits", ", signs unpacked from bytes")):
            if draw == "bits" and workload.device.type == "cuda":
                continue  # bytes are drawn by the processor: no help to a GPU
            projection = DenseProjection(dim, _SEED, draw)
            way = Way(
                name=f"LESS's loop to {dim}{label}",
                run=runner(projection, len(samples)),
                warm_up=runner(replace(projection, dim=min(dim, 64)), 2),
                rounds=_SLOW_ROUNDS,
            )
            yield FeatureWay("less", way, share=len(samples) / len(workload.samples), dim=dim)


def _bergson(workload: Workload, choice: Choice) -> Iterator[FeatureWay | Skipped]:
    if not bergson_modes.is_installed():
        yield Skipped("bergson", "bergson is not installed")
        return
    index_bytes = 4 * len(workload.samples) * matrix_parameters(workload.model)[1]
    for mode in bergson_modes.modes(workload, sorted({min(choice.dims), max(choice.dims)})):
        if mode.target is None and index_bytes > _RAW_LIMIT_BYTES:
            yield Skipped(mode.name, f"its index would take {index_bytes / 2**30:.0f} GiB of memory")
        else:
            yield _bergson_way(workload, mode, choice.bergson_batches)


def _bergson_way(workload: Workload, mode: BergsonMode, few: int) -> FeatureWay:
    batches = [batch.tolist() for batch in workload.batches]
    is_global = mode.target == "global"
    # all at once, it draws its matrix anew for every batch: each takes about the same, so a few tell the time
    timed = _spread(batches, few) if is_global else batches
    way = Way(
        name=mode.name,
        run=bergson_modes.runner(workload, mode, timed),
        warm_up=bergson_modes.runner(workload, replace(mode, dim=min(mode.dim, 64)), batches[:1]),
        rounds=_SLOW_ROUNDS if is_global else None,
    )
    share = len(timed) / len(batches)
    return FeatureWay("bergson", way, share=share, dim=mode.dim if is_global else None)


def _spread(batches: Sequence[list[int]], count: int) -> list[list[int]]:
    """Return some of the batches, the middle one of each of `count` groups."""
    if count >= len(batches):
        return list(batches)
    return [batches[int((place + 0.5) * len(batches) / count)] for place in range(count)]


_GROUP_WAYS: dict[str, Callable[[Workload, Choice], Iterator[FeatureWay | Skipped]]] = {
    "floor": _floor,
    "ours": _ours,
    "auto": _ours_in_auto_batches,
    "stages": _stages,
    "less": _less,
    "bergson": _bergson,
}


def peak_of(settings: WorkloadSettings, lengths: Sequence[int], choice: Choice, name: str) -> int:
    """Return the bytes above the model that one way takes at its peak; call it in a fresh process.

    Args:
        settings: of the workload, which is built anew.
        lengths: tokens of each sample.
        choice: as for `build_ways`.
        name: of the way.
    """
    return_large_blocks_at_once()
    torch.set_num_threads(choice.threads)
    workload = build_workload(settings, lengths)
    batch_loss(
        workload.model, workload.samples[:1]
    ).backward()  # libraries take their memory at the first use
    workload.model.zero_grad(set_to_none=True)
    ways, _ = build_ways(workload, choice)
    (way,) = (way for way in ways if way.name == name)
    return peak_memory(way.way.run, workload.device)
