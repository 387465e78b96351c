"""How long a large pool takes to ingest, again and after a change, and what the catalog's queries take then.

A made-up pool is written first, which counts for nothing. Each ingest is the command line in a process of its
own: wall and CPU seconds, and peak resident memory. Two selections are published on the pool, and the queries
that users make are timed, each on a connection of its own.

    python benchmarks/ingest.py [--rows 1000000] [--folder FOLDER] [--out benchmarks/results/ingest.json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from measuring import Clock, hardware, rounded, today, versions, write_result
from pool_workload import BROKEN, REPEATED, SHAPES, change_pool, write_pool

from clusterucb_core.pool.ingest import limit_samples, read_sample_ids, read_samples
from clusterucb_core.records import ArtifactRef, Message, Target, TargetRow
from clusterucb_core.store import (
    SelectionDraft,
    diff_selections,
    latest_selections,
    open_catalog,
    pool_messages,
    pool_sample_ids,
    publish_selections,
    selection_pulls,
    selection_samples,
    selection_sources,
)
from clusterucb_core.store.statements import rows as query_rows
from clusterucb_core.targets.leaks import find_leaks

PROJECT = Path(__file__).resolve().parents[1]
TIMED = Path(__file__).with_name("timed_command.py")
SELECTED, PULLED, LIMITED = 0.05, 0.2, 0.2
TEST_ROWS, QUERY_ROUNDS = 1000, 3

_SOURCES = (
    "SELECT source, count(*) FROM pool_samples JOIN samples USING (sample_id) "
    "WHERE pool_version = ? GROUP BY source"
)
_QUARANTINE = "SELECT source, reason, count(*) FROM quarantine WHERE pool_version = ? GROUP BY ALL"
_FIRST_PULLS = "SELECT kind, count(*), avg(reward) FROM pulls WHERE selection_version = 1 GROUP BY kind"


def measure(folder: Path, rows: int, *, seed: int = 0) -> dict[str, Any]:
    """Return every figure of a pool of so many rows.

    Args:
        folder: an empty folder for the pool and the state.
        rows: rows of the pool.
        seed: of the pool, and of what is selected from it.
    """
    began = time.perf_counter()
    paths = write_pool(folder / "pool", rows, seed=seed)
    written_s = time.perf_counter() - began
    mib = sum(path.stat().st_size for path in paths) / 2**20
    config, home = _configuration(folder), folder / "home"
    ingests: dict[str, Any] = {"first": _ingest(config, home), "again": _ingest(config, home)}
    changes = change_pool(paths[0])
    ingests["after a change"] = _ingest(config, home) | {"changes": changes}
    catalog, pool = home / "catalog.duckdb", _newest_artifact(home)
    return {
        "workload": {
            "rows": rows,
            "files": len(paths),
            "mib": rounded(mib),
            "share_repeated": REPEATED,
            "share_broken": BROKEN,
            "seconds_to_write": rounded(written_s),
        },
        "ingests": ingests,
        "publication": _publish(catalog, rows, seed),
        "queries": _queries(catalog),
        "commands": {
            name: _command(home, *line.split())
            for name, line in {"list": "list", "show": "show", "diff": "diff 1 2"}.items()
        },
        "whole_pool": _whole_pool(pool, rows, seed),
        "catalog_mib": rounded(catalog.stat().st_size / 2**20),
        "samples_file_mib": rounded((Path(pool.path) / "samples.parquet").stat().st_size / 2**20),
    }


def _configuration(folder: Path) -> Path:
    """Write a configuration of the pool; what the ingest does not read is named only."""
    pool = folder / "pool"
    sources = [{"path": str(pool / shape / "*"), "name": shape} for shape in SHAPES]
    target = {"name": "made-up", "validation": "validation.jsonl", "test": "test.jsonl"}
    path = folder / "config.yaml"
    path.write_text(json.dumps({"pool": {"sources": sources}, "target": target, "model": {"base": "none"}}))
    return path


def _ingest(config: Path, home: Path) -> dict[str, Any]:
    found = _command(home, "ingest", str(config), "--json")
    printed = json.loads(found.pop("printed"))
    wanted = ("pool_version", "created", "n_samples", "n_added", "n_removed", "n_quarantined")
    return found | {name: printed[name] for name in wanted} | {"duplicates": printed["counts"]["duplicates"]}


def _command(home: Path, *line: str) -> dict[str, Any]:
    """Run the command line to its end and return its seconds, its peak memory and, of JSON, the text."""
    figures = home.parent / "figures.json"
    done = subprocess.run(
        [sys.executable, str(TIMED), str(figures), sys.executable, "-m", "flows", *line],
        cwd=PROJECT,
        env=os.environ | {"CLUSTERUCB_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"`clusterucb {' '.join(line)}` ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    found: dict[str, Any] = json.loads(figures.read_text("utf-8"))
    print(f"clusterucb {line[0]}: {found['seconds']:g} s", file=sys.stderr, flush=True)
    return found | ({"printed": done.stdout} if "--json" in line else {})


def _newest_artifact(home: Path) -> ArtifactRef:
    newest = max((home / "artifacts" / "ingest").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    return ArtifactRef(stage="ingest", fingerprint=newest.name, path=str(newest))


def _publish(catalog: Path, rows: int, seed: int) -> dict[str, Any]:
    """Publish two selections of 5 % of the rows from 20 % pulls of the pool's two newest versions."""
    drafts: list[SelectionDraft] = []
    with open_catalog(catalog) as con:
        for number in (1, 2):
            ids = np.array(pool_sample_ids(con, number))
            drawn = np.random.default_rng([seed, 2, number]).permutation(ids)[: int(rows * PULLED)].tolist()
            drafts.append(_draft(drawn, int(rows * SELECTED), number))
        began = time.perf_counter()
        publish_selections(con, drafts)
    seconds = time.perf_counter() - began
    return {
        "versions": len(drafts),
        "selected": len(drafts[0].samples),
        "pulls": len(drafts[0].pulls),
        "seconds": rounded(seconds),
    }


def _draft(drawn: Sequence[str], count: int, number: int) -> SelectionDraft:
    n = len(drawn)
    rewards = np.linspace(1.0, -1.0, n)
    pulls = pl.DataFrame(
        {
            "step": np.arange(n),
            "round": np.arange(n) // 64,
            "cluster": np.arange(n) % 500,
            "sample_id": drawn,
            "reward": rewards,
            "kind": ["cold_start" if step < n // 4 else "draw" for step in range(n)],
            "bound": rewards,
            "arm_mean": rewards,
            "arm_std": np.abs(rewards),
            "arm_left": np.arange(n)[::-1],
        }
    )
    best = pulls.head(count).select("sample_id", "cluster", influence="reward")
    return SelectionDraft(
        selection_key=f"made-up {number}",
        run_id=f"run-{number}",
        period=1,
        pool_version=number,
        target="made-up",
        mode="static",
        policy="ucb_beta",
        budget_samples=n,
        gradient_evaluations=n,
        gradient_evaluations_reused=0,
        target_gradient_evaluations=0,
        selection_flops=1.0,
        full_selection_flops=5.0,
        cost={"draw": {"gradient_evaluations": n, "flops": 1.0}, "full": {"gradient_evaluations": 5 * n}},
        config={"seed": 0},
        config_digest="made-up",
        code_version="benchmark",
        mlflow_run_id=None,
        flow_run_id=None,
        pulls=pulls,
        samples=best.with_row_index("rank", offset=1),
    )


def _queries(catalog: Path) -> dict[str, Any]:
    """Time what users ask, opening the catalog included; the median of a few."""
    asked: dict[str, Callable[[Any], object]] = {
        "counts by source of a pool version": lambda con: query_rows(con, _SOURCES, [2]),
        "quarantine by reason": lambda con: query_rows(con, _QUARANTINE, [2]),
        "ids of a pool version": lambda con: pool_sample_ids(con, 2),
        "messages of the selected samples": lambda con: selection_samples(con, 1),
        "messages of 1,000 samples by id": lambda con: pool_messages(con, pool_sample_ids(con, 2)[:1000]),
        "sources of a selection": lambda con: selection_sources(con, 1),
        "pulls of a selection": lambda con: selection_pulls(con, 1),
        "pulls by kind": lambda con: query_rows(con, _FIRST_PULLS),
        "latest_selection": latest_selections,
        "selection_diff": lambda con: diff_selections(con, 1, 2),
    }
    found: dict[str, Any] = {}
    for name, ask in asked.items():
        clock = Clock()
        for _ in range(QUERY_ROUNDS):
            wall, cpu = time.perf_counter(), time.process_time()
            with open_catalog(catalog, read_only=True) as con:
                ask(con)
            clock.wall.append(time.perf_counter() - wall)
            clock.cpu.append(time.process_time() - cpu)
        found[name] = {
            "seconds": rounded(statistics.median(clock.wall)),
            "slowest": rounded(max(clock.wall)),
            "cpu_seconds": rounded(statistics.median(clock.cpu)),
        }
    return found


def _whole_pool(pool: ArtifactRef, rows: int, seed: int) -> dict[str, Any]:
    """Time what a run does with every sample of the pool before it computes anything."""
    found: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        found[name] = {
            "seconds": rounded(time.perf_counter() - wall),
            "cpu_seconds": rounded(time.process_time() - cpu),
        }
        return result

    ids = timed("read_sample_ids", lambda: read_sample_ids(pool))
    most = max(1, int(rows * LIMITED))
    part = timed("limit_samples to a fifth", lambda: limit_samples(ids, max_samples=most, seed=seed))
    timed("read_samples, a fifth", lambda: sum(1 for _ in read_samples(pool, set(part))))
    target = _target(pool)
    timed("find_leaks, 1,000 test rows", lambda: find_leaks(target, read_samples(pool)))
    return found


def _target(pool: ArtifactRef) -> Target:
    """Return a target whose test rows are prompts of the pool backwards: they share words, no run."""
    test: list[TargetRow] = []
    for number, sample in zip(range(TEST_ROWS), read_samples(pool), strict=False):
        words = [word for word in sample.messages[0].content.split() if not word.endswith(".")]
        asked = Message("user", " ".join(reversed(words)))
        test.append(TargetRow(f"row-{number}", "all", (asked, Message("assistant", "No."))))
    return Target("made-up", (), tuple(test))


def report(result: dict[str, Any]) -> str:
    """Return the figures as a table for the terminal."""
    work = result["workload"]
    lines = [f"{work['rows']:,} rows in {work['files']} files, {work['mib']:g} MiB", ""]
    lines.append(f"{'':38}{'seconds':>10}{'CPU s':>10}{'peak MiB':>10}")
    named = {f"ingest, {name}": found for name, found in result["ingests"].items()}
    named |= {f"clusterucb {name}": found for name, found in result["commands"].items()}
    named |= {name: found for part in ("queries", "whole_pool") for name, found in result[part].items()}
    named["publication of two selections"] = result["publication"]
    for name, found in named.items():
        cells = [found.get(key) for key in ("seconds", "cpu_seconds", "peak_memory_mib")]
        lines.append(f"{name:38}" + "".join(f"{'' if cell is None else cell:>10}" for cell in cells))
    lines.append(
        f"\ncatalog {result['catalog_mib']:g} MiB, samples.parquet {result['samples_file_mib']:g} MiB"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the pool; at least 1,200")
    parser.add_argument("--folder", type=Path, help="an empty folder to work in; otherwise a temporary one")
    parser.add_argument("--seed", type=int, default=0, help="of the pool and of the selections")
    parser.add_argument("--out", type=Path, help="result file; without it the table is printed only")
    chosen = parser.parse_args(arguments)
    if chosen.rows < 1200:
        parser.error(f"--rows {chosen.rows} is too few for the twelve files of the pool; give at least 1200")
    if chosen.folder and chosen.folder.is_dir() and any(chosen.folder.iterdir()):
        parser.error(f"--folder {chosen.folder} is not empty; give an empty one, or one to be made")
    with ExitStack() as closing:
        folder = chosen.folder or Path(closing.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(folder.resolve(), chosen.rows, seed=chosen.seed)
    result = {
        "benchmark": "ingest",
        "date": today(),
        "command": f"python benchmarks/ingest.py --rows {chosen.rows} --seed {chosen.seed}",
        "hardware": hardware(torch.device("cpu")),
        "versions": versions("clusterucb", "duckdb", "pyarrow", "polars"),
        **figures,
    }
    print(report(result))
    if chosen.out:
        write_result(chosen.out, result)


if __name__ == "__main__":
    main(sys.argv[1:])
