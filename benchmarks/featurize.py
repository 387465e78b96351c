"""Time per-sample gradient features against plain training, LESS's loop and bergson; see README.md beside it.

Writes one JSON file for each rank to `benchmarks/results/`, or to `--out`.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from gradient_ways import FLOOR, GROUPS, Choice, FeatureWay, build_ways, peak_of
from gradient_workload import (
    SIZES,
    Workload,
    WorkloadSettings,
    build_workload,
    describe,
    matrix_parameters,
    sample_lengths,
)
from less_loop import COLLECTED
from measuring import (
    MIB,
    RESULTS,
    Clock,
    alternate,
    hardware,
    hardware_slug,
    matrix_product,
    rounded,
    spread,
    today,
    versions,
    write_result,
)

PACKAGES = ("clusterucb", "torch", "transformers", "peft", "numpy", "bergson")
OPERATIONS = (
    "(4 P + 6 L) T of the whole work, over the seconds, over the matrix rate: P entries of the base's weight "
    "matrices with the output head (2 P T forward, 2 P T backward to the inputs; its weights are frozen), "
    "L LoRA entries (2 forward, 4 backward), T tokens without padding; attention scores and projections are "
    "not counted"
)


def measure(
    settings: WorkloadSettings, choice: Choice, *, rounds: int, with_memory: bool = True
) -> dict[str, Any]:
    """Time all ways in alternation and return the result, ready for JSON.

    Args:
        settings: the workload.
        choice: the ways.
        rounds: timed rounds after the warm-up.
        with_memory: whether to run every way once more in a process of its own for its peak memory.
    """
    torch.set_num_threads(choice.threads)
    lengths, lengths_from = sample_lengths(settings)
    workload = build_workload(settings, lengths)
    ways, skipped = build_ways(workload, choice)
    facts = hardware(workload.device)
    product, product_operations = matrix_product(workload.device, getattr(torch, settings.dtype))
    clocks = alternate([product, *(way.way for way in ways)], rounds=rounds, device=workload.device)
    rate = product_operations / statistics.median(clocks[product.name].wall)
    peaks = {way.name: _peak(settings, lengths, choice, way.name) for way in ways} if with_memory else {}
    figures = {way.name: _figures(workload, way, clocks, rate) | peaks.get(way.name, {}) for way in ways}
    return {
        "benchmark": "featurize",
        "date": today(),
        "hardware": facts,
        "versions": versions(*PACKAGES),
        "settings": asdict(settings) | asdict(choice) | {"rounds": rounds},
        "workload": describe(workload, lengths_from),
        "matrix_rate_gflops": rounded(rate / 1e9),
        "share_of_matrix_rate_is": OPERATIONS,
        "ways": figures,
        "skipped": {skip.name: skip.reason for skip in skipped},
        "comparisons": compare(figures),
    }


def _figures(workload: Workload, way: FeatureWay, clocks: Mapping[str, Clock], rate: float) -> dict[str, Any]:
    """Return one way's figures, for the whole work: a part that was timed is scaled up."""
    wall = [seconds / way.share for seconds in clocks[way.name].wall]
    cpu = [seconds / way.share for seconds in clocks[way.name].cpu]
    seconds = statistics.median(wall)
    tokens = sum(len(sample.input_ids) for sample in workload.samples)
    base, lora = matrix_parameters(workload.model)
    figures: dict[str, Any] = {
        "group": way.group,
        "dim": way.dim,
        "seconds": spread(wall),
        "cpu_seconds": spread(cpu),
        "extrapolated": way.share < 1,
        "share_timed": rounded(way.share),
        "samples_per_s": rounded(len(workload.samples) / seconds),
        "tokens_per_s": rounded(tokens / seconds),
        "share_of_matrix_rate": rounded((4 * base + 6 * lora) * tokens / seconds / rate),
    }
    if FLOOR in clocks:
        figures["times_the_floor"] = _ratios(wall, clocks[FLOOR].wall)
        figures["times_the_floor_in_cpu_time"] = _ratios(cpu, clocks[FLOOR].cpu)
    return figures


def _ratios(seconds: Sequence[float], floor: Sequence[float]) -> dict[str, float]:
    """Compare round by round: what slows the machine for a while slows neighbours alike."""
    return spread([own / base for own, base in zip(seconds, floor, strict=False)])


def _peak(settings: WorkloadSettings, lengths: Sequence[int], choice: Choice, name: str) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        peak = process.submit(peak_of, settings, tuple(lengths), choice, name).result()
    return {"peak_memory_mib": rounded(peak / MIB)}


def compare(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the ratios that the acceptance asks for, as far as their ways were timed."""
    found: dict[str, float] = {}
    less = {name: way for name, way in figures.items() if way["group"] == "less"}
    for way_name, own in figures.items():
        if own["group"] not in ("ours", "auto"):
            continue
        if FLOOR in figures and own["group"] == "ours":
            found[f"{way_name}_over_floor".replace(" ", "_")] = own["times_the_floor"]["median"]
            found |= _memory_ratio(f"{way_name}_memory_over_floor".replace(" ", "_"), own, figures[FLOOR])
        found |= {
            f"{name} over {way_name}": rounded(way["seconds"]["median"] / own["seconds"]["median"])
            for name, way in less.items()
            if way["dim"] == own["dim"]
        }
    others = [way["seconds"]["median"] for way in figures.values() if way["group"] == "bergson"]
    ours = [way["seconds"]["median"] for way in figures.values() if way["group"] == "ours"]
    if others and ours:
        found["fastest_bergson_over_slowest_ours"] = rounded(min(others) / max(ours))
    return found


def _memory_ratio(key: str, own: Mapping[str, Any], floor: Mapping[str, Any]) -> dict[str, float]:
    if "peak_memory_mib" not in own or not floor["peak_memory_mib"]:
        return {}
    return {key: rounded(own["peak_memory_mib"] / floor["peak_memory_mib"])}


def report(result: Mapping[str, Any]) -> str:
    """Return the result as a table to print."""
    work, facts = result["workload"], result["hardware"]
    lines = [
        f"{result['settings']['size']}, LoRA r {result['settings']['rank']} "
        f"({work['lora_parameters']:,} entries), {work['samples']} samples, "
        f"median length {work['median_length']:g} ({work['lengths_from']})",
        f"{facts.get('gpu', facts['cpu'])}, {facts['threads']} threads, "
        f"matrix rate {result['matrix_rate_gflops']:g} GFLOP/s in {result['settings']['dtype']}",
        "",
        f"{'way':<48} {'x floor':>8} {'(min .. max)':>15} {'samples/s':>10} {'tokens/s':>9} {'of rate':>8} "
        f"{'MiB':>7}",
    ]
    lines += [_row(name, way) for name, way in result["ways"].items()]
    lines += [f"{name}: skipped, {reason}" for name, reason in result["skipped"].items()]
    lines += ["", *(f"{name}: {value:g}" for name, value in result["comparisons"].items())]
    return "\n".join(lines)


def _row(name: str, way: Mapping[str, Any]) -> str:
    ratio = way.get("times_the_floor", {"median": float("nan"), "min": float("nan"), "max": float("nan")})
    mark = " *" if way["extrapolated"] else ""
    return (
        f"{name + mark:<48} {ratio['median']:>8.3g} {ratio['min']:>6.3g} .. {ratio['max']:<5.3g} "
        f"{way['samples_per_s']:>10.4g} {way['tokens_per_s']:>9.4g} {way['share_of_matrix_rate']:>8.1%} "
        f"{way.get('peak_memory_mib', float('nan')):>7.4g}"
    )


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _groups(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    unknown = [name for name in chosen if name not in GROUPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(GROUPS)}")
    return chosen


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = found.add_argument
    add("--size", choices=sorted(SIZES), default="S", help="shape of the model")
    add("--rank", type=_whole_numbers, default=(8,), help="LoRA ranks, one run after the other")
    add("--dims", type=_whole_numbers, default=(1024, 2048, 8192), help="dimensions of a feature")
    add("--samples", type=int, default=128, help="how many samples")
    add("--max-length", type=int, default=512, help="longest sample, in tokens")
    add("--batch-tokens", type=int, default=1024, help="padded tokens of a batch")
    add("--rounds", type=int, default=5, help="timed rounds after the warm-up")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the base model")
    add(
        "--adapter-dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the adapter"
    )
    add(
        "--less-samples", type=int, default=COLLECTED, help="samples of the one-by-one loop, a multiple of 16"
    )
    add("--ways", type=_groups, default=GROUPS, help="groups of ways, comma-separated")
    add("--no-memory", action="store_true", help="do not measure peak memory, which takes one more run a way")
    add("--seed", type=int, default=0, help="of weights, tokens and choice of lengths")
    add("--out", type=Path, help="result file, for one rank; otherwise results/ beside this file")
    return found


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark from the command line."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    if options.out and len(options.rank) > 1:
        command_line.error("--out takes the result of one rank; give one, or leave --out away")
    settings = WorkloadSettings(
        size=options.size,
        samples=options.samples,
        max_length=options.max_length,
        batch_tokens=options.batch_tokens,
        device=options.device,
        dtype=options.dtype,
        adapter_dtype=options.adapter_dtype,
        seed=options.seed,
    )
    choice = Choice(options.ways, options.dims, options.less_samples, threads=options.threads)
    for rank in options.rank:
        result = measure(
            replace(settings, rank=rank), choice, rounds=options.rounds, with_memory=not options.no_memory
        )
        result["command"] = "python benchmarks/featurize.py " + " ".join(_without_out(arguments))
        slug = hardware_slug(result["hardware"])
        path = options.out or RESULTS / f"featurize-{slug}-{settings.size}-r{rank}.json"
        write_result(path, result)
        print(report(result), f"\nwritten: {path.name}\n", flush=True)


def _without_out(arguments: Sequence[str]) -> list[str]:
    """Leave out where the result goes: a path of one machine has no place in it."""
    kept = list(arguments)
    if "--out" in kept:
        place = kept.index("--out")
        del kept[place : place + 2]
    return [argument for argument in kept if not argument.startswith("--out=")]


if __name__ == "__main__":
    main(sys.argv[1:])
