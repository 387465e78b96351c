"""Tables of measured figures, from the results that the benchmarks keep; each names the command that made it.

Reads JSON files of `benchmarks/results/`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from site_parts.markdown import table

Result = Mapping[str, Any]
TARGETS = {"gsm8k": "GSM8K", "bbh": "BBH"}
POLICIES = (
    "uniform",
    "ucb1",
    "threshold_hard",
    "threshold_normal",
    "ucb_beta",
    "linucb",
    "linucb, hidden_state",
)
BUDGETS = (0.1, 0.2)
SIDES = (
    "linucb, token embeddings",
    "linucb, hidden_state, layer 1 of 4",
    "linucb, hidden_state, layer 2 of 4",
    "linucb, hidden_state",
    "linucb, gradient",
)
DIMENSIONS = 8192


def policies_table(results: Path) -> str:
    """Return what policies capture at each budget, and the operations of a run beside full selection's."""
    found = _selection(results)
    rows = [
        [
            f"`{policy}`" if "," not in policy else _named(policy),
            f"{budget:.0%}",
            *_both(found, policy, budget),
        ]
        for policy in POLICIES
        for budget in BUDGETS
    ]
    headers = ["policy", "budget", *(f"{name}, captured" for name in TARGETS.values())]
    headers += [f"{name}, operations" for name in TARGETS.values()]
    return table(headers, rows) + _made_by(found.values())


def side_information_table(results: Path) -> str:
    """Return what `linucb` captures at a budget of 10 % by the source of its side information."""
    found = _selection(results)
    rows = [[side.removeprefix("linucb, "), *_both(found, side, 0.1, part="first_pass")] for side in SIDES]
    headers = ["side information", *(f"{name}, captured" for name in TARGETS.values())]
    headers += [f"{name}, operations" for name in TARGETS.values()]
    return table(headers, rows) + _made_by(found.values())


def certificates_table(results: Path) -> str:
    """Return how often the 95 % intervals cover the truth, and how wide they are."""
    found = _selection(results)
    rows = [
        [
            TARGETS[target],
            row["policy"],
            f"{row['replays']}",
            f"{row['recall_coverage']:.1%}",
            f"{row['recall_median_width']:.2f}",
            f"{row['captured_coverage']:.1%}",
            f"{row['captured_median_width']:.2f}",
        ]
        for target, result in found.items()
        for row in result["certificates"]
    ]
    headers = ["target", "policy", "replays", "recall covered", "median width"]
    return table([*headers, "captured influence covered", "median width"], rows) + _made_by(found.values())


def projections_table(results: Path) -> str:
    """Return what each projection keeps at 8,192 dimensions."""
    result = _read(results / "projection.json")
    rows = [
        [
            TARGETS[row["target"]],
            f"`{row['projection']}`",
            f"{row['pearson_of_cosines']:.3f}",
            f"{row['spearman_of_influence']:.3f}",
            f"{row['recall_of_top']:.3f}",
        ]
        for row in result["means"]
        if row["dim"] == DIMENSIONS
    ]
    headers = ["target", "projection", "correlation of cosines", "rank correlation of influence"]
    return table([*headers, "recall of the true top 5 %"], rows) + _made_by([result])


def speed_table(results: Path) -> str:
    """Return the time of gradient features over that of plain training, one line a measured setting."""
    found = [_read(path) for path in sorted(results.glob("featurize-*.json"))]
    rows = [_speed_row(result) for result in sorted(found, key=lambda result: result["settings"]["rank"])]
    headers = ["hardware", "model, LoRA", "ours", "ours, `auto` batches", "LESS's loop", "bergson, fastest"]
    note = "A star: extrapolated from a part of the work.\n\n"
    return table(headers, rows) + "\n" + note + _made_by(found).lstrip()


def reselection_table(results: Path) -> str:
    """Return what a re-selection took and captured beside the run that it followed."""
    result = _read(results / "reselection.json")
    change, run, again = result["change"], result["run"], result["reselect"]
    rows = [
        ["gradients", f"{run['gradients']:,}", f"{again['gradients']:,}"],
        ["time of the selecting stages", f"{run['selecting_s']:.0f} s", f"{again['selecting_s']:.0f} s"],
    ]
    followed, scratch = (result[name]["captured_influence"] for name in ("reselected", "from_scratch"))
    captured = (
        f"\nOf {change['n_samples']:,} samples {change['n_added']:,} were new, {change['n_removed']:,} gone. "
        f"Captured influence {followed:.3f}; from scratch at the same checkpoint it is {scratch:.3f}.\n"
    )
    made = "\nMade by `python benchmarks/reselection.py --folder FOLDER`.\n"
    return table(["", "the first run", "re-selection"], rows) + captured + made


def scale_table(results: Path) -> str:
    """Return how long it takes to read a large pool, and to decide over one, without any gradient."""
    ingest, bandit = _read(results / "ingest.json"), _read(results / "bandit.json")
    rows_read, first = ingest["workload"]["rows"], ingest["ingests"]["first"]
    again, draws, regression = ingest["ingests"]["again"], bandit["ucb_beta"], bandit["linucb"]
    rows = [
        [
            f"ingest of {rows_read:,} rows",
            f"{first['seconds']:.0f} s",
            f"{first['peak_memory_mib'] / 1024:.1f} GiB",
        ],
        [
            "the same with nothing changed",
            f"{again['seconds']:.0f} s",
            f"{again['peak_memory_mib'] / 1024:.1f} GiB",
        ],
        [
            f"`ucb_beta`: {draws['pulls']:,} draws, one a round, {draws['samples']:,} samples",
            f"{draws['ours_seconds']:.1f} s",
            "–",
        ],
        [
            f"`linucb`: {regression['pulls']:,} draws, {regression['rounds']} rounds, the same samples",
            f"{regression['seconds']:.0f} s",
            f"{regression['peak_memory_gib']:.1f} GiB",
        ],
    ]
    return table(["", "time", "peak memory"], rows) + _made_by([ingest, bandit])


def _selection(results: Path) -> dict[str, Result]:
    return {target: _read(results / f"selection-{target}.json") for target in TARGETS}


def _read(path: Path) -> Result:
    result: Result = json.loads(path.read_text(encoding="utf-8"))
    return result


def _named(policy: str) -> str:
    name, _, context = policy.partition(", ")
    return f"`{name}`, `context: {context}`"


def _both(
    found: Mapping[str, Result], policy: str, budget: float, *, part: str = "policies"
) -> Sequence[str]:
    """Return captured influence on every target, then operations over full selection's on every target."""
    lines = [
        next(row for row in result[part] if row["policy"] == policy and row["budget_fraction"] == budget)
        for result in found.values()
    ]
    captured = [f"{line['captured_influence']:.3f}" for line in lines]
    return [*captured, *(f"{line['flops_over_full']:.2f}" for line in lines)]


def _speed_row(result: Result) -> list[str]:
    settings, hardware = result["settings"], result["hardware"]
    device = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['cores']} cores"
    groups = {"ours": "largest", "auto": "largest", "less": "largest", "bergson": "fastest"}
    cells = [_way(result["ways"].values(), group, which) for group, which in groups.items()]
    return [str(device), f"{settings['size']}, r {settings['rank']}", *cells]


def _way(ways: Iterable[Result], group: str, which: str) -> str:
    """Return a group's figure: of its largest dimension (as it stands first), or of its fastest way."""
    of_group = [way for way in ways if way["group"] == group]
    if not of_group:
        return "–"
    if which == "largest":
        most = max(way["dim"] or 0 for way in of_group)
        chosen = next(way for way in of_group if (way["dim"] or 0) == most)
    else:
        chosen = min(of_group, key=lambda way: way["times_the_floor"]["median"])
    star = "*" if chosen["extrapolated"] else ""
    dimensions = f" ({chosen['dim']:,} dimensions)" if chosen["dim"] else ""
    return f"{chosen['times_the_floor']['median']:.2f}{star}{dimensions}"


def _made_by(results: Iterable[Result]) -> str:
    commands = dict.fromkeys(str(result["command"]).strip() for result in results)
    return "\nMade by " + " and ".join(f"`{command}`" for command in commands) + ".\n"
