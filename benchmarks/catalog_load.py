"""Writers and readers on one catalog at once: what each saw, how long it waited, and what is lost.

Every process opens the catalog as runs and commands do, for one piece of work at a time. Afterwards what the
writers were told is compared with what the catalog holds, in plain SQL.

    python benchmarks/catalog_load.py [--seconds 600] [--writers 4] [--readers 4] [--out FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import torch
from catalog_workers import (
    PERIODS,
    POOL,
    PULLED,
    READER_PAUSE_S,
    SELECTED,
    WRITER_PAUSE_S,
)
from measuring import hardware, rounded, today, versions, write_result

from clusterucb_core.store import open_catalog

WORKER = Path(__file__).with_name("catalog_workers.py")
# What must come to zero, each a question about the catalog alone.
LAWS = {
    "versions without all of their samples": (
        "SELECT count(*) FROM selections "
        "LEFT JOIN (SELECT selection_version, count(*) AS n, max(rank) AS top "
        "FROM selection_samples GROUP BY ALL) USING (selection_version) "
        "WHERE n IS DISTINCT FROM n_selected OR top IS DISTINCT FROM n_selected"
    ),
    "versions without all of their pulls": (
        "SELECT count(*) FROM selections LEFT JOIN (SELECT selection_version, count(*) AS n FROM pulls "
        "GROUP BY ALL) USING (selection_version) WHERE n IS DISTINCT FROM budget_samples"
    ),
    "runs that are there in part": (
        f"SELECT count(*) FROM (SELECT run_id FROM selections GROUP BY ALL HAVING count(*) <> {PERIODS})"
    ),
    "numbers left out or given twice": "SELECT max(selection_version) - count(*) FROM selections",
    "versions older than the one before": (
        "SELECT count(*) FROM "
        "(SELECT created_at, lag(created_at) OVER (ORDER BY selection_version) AS before FROM selections) "
        "WHERE created_at < before"
    ),
    "pools without all of their samples": (
        "SELECT count(*) FROM pools LEFT JOIN (SELECT pool_version, count(*) AS n FROM pool_samples "
        "GROUP BY ALL) USING (pool_version) WHERE n IS DISTINCT FROM n_samples"
    ),
}


def measure(catalog: Path, seconds: float, *, writers: int, readers: int) -> dict[str, Any]:
    """Return what the processes did on a new catalog, and what is wrong with it.

    Args:
        catalog: a path in an empty folder.
        seconds: how long each works.
        writers: how many processes publish.
        readers: how many processes look.
    """
    with open_catalog(catalog):
        pass
    began = time.monotonic()
    parts = [("write", number) for number in range(writers)] + [("read", number) for number in range(readers)]
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), part, str(catalog), str(number), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for part, number in parts
    ]
    printed = [process.communicate()[0] for process in started]
    ended = time.monotonic() - began
    if any(process.returncode for process in started):
        raise RuntimeError(f"a process ended with {[process.returncode for process in started]}")
    logs: list[dict[str, Any]] = [json.loads(text) for text in printed]
    return {
        "seconds": rounded(ended),
        "openings": {kind: _openings(logs, kind, ended) for kind in ("pool", "publish", "evaluate", "read")},
        "gave_up_waiting": sum(log["busy"] for log in logs),
        "wrong": {"told by processes": _told(logs), **_compared(catalog, logs)},
        "versions": sum(len(log["versions"]) for log in logs),
        "catalog_mib": rounded(catalog.stat().st_size / 2**20),
    }


def _openings(logs: Sequence[dict[str, Any]], kind: str, ended: float) -> dict[str, float]:
    waits, seconds = ([s for log in logs for s in log[name].get(kind, ())] for name in ("waits", "seconds"))
    return {
        "number": len(waits),
        "a_second": rounded(len(waits) / ended),
        "median_wait_s": rounded(statistics.median(waits)) if waits else 0.0,
        "longest_wait_s": rounded(max(waits, default=0.0)),
        "median_work_s": rounded(statistics.median(seconds)) if seconds else 0.0,
        "longest_work_s": rounded(max(seconds, default=0.0)),
    }


def _told(logs: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({text for log in logs for text in log["wrong"]})


def _compared(catalog: Path, logs: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how much of what the writers were told is not in the catalog, or is more than once."""
    told = {key: version for log in logs for key, version in log["versions"].items()}
    pools = [version for log in logs for version in log["pools"]]
    with duckdb.connect(catalog, read_only=True) as con:
        held = dict(con.execute("SELECT selection_key, selection_version FROM selections").fetchall())
        laws = {name: con.execute(query).fetchall()[0][0] for name, query in LAWS.items()}
        held_pools = {version for (version,) in con.execute("SELECT pool_version FROM pools").fetchall()}
        evaluations = con.execute("SELECT count(*) FROM evaluations").fetchall()[0][0]
    return {
        **laws,
        "versions told and not held, or held and not told": len(told.items() ^ held.items()),
        "pools told and not held, or held and not told": len(set(pools) ^ held_pools),
        "pools given one number": len(pools) - len(set(pools)),
        "evaluations lost or twice": abs(evaluations - sum(log["evaluations"] for log in logs)),
    }


def report(result: dict[str, Any]) -> str:
    """Return the figures as a table for the terminal."""
    columns = {"number": 9, "a_second": 10, "median_wait_s": 15, "longest_wait_s": 16, "longest_work_s": 16}
    lines = ["".ljust(12) + "".join(name.replace("_", " ").rjust(width) for name, width in columns.items())]
    for kind, found in result["openings"].items():
        lines.append(kind.ljust(12) + "".join(f"{found[name]:>{width}g}" for name, width in columns.items()))
    lines.append(f"\n{result['versions']:,} versions, catalog {result['catalog_mib']:g} MiB")
    lines.append(f"gave up waiting: {result['gave_up_waiting']}")
    lines += [f"{name}: {found or 'none'}" for name, found in result["wrong"].items()]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long every process works")
    parser.add_argument("--writers", type=int, default=4, help="processes that publish")
    parser.add_argument("--readers", type=int, default=4, help="processes that look")
    parser.add_argument("--out", type=Path, help="result file; without it the table is printed only")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            Path(folder) / "catalog.duckdb", chosen.seconds, writers=chosen.writers, readers=chosen.readers
        )
    result = {
        "benchmark": "catalog_load",
        "date": today(),
        "command": (
            f"python benchmarks/catalog_load.py --seconds {chosen.seconds:g} --writers {chosen.writers} "
            f"--readers {chosen.readers}"
        ),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions("clusterucb", "duckdb", "polars"),
        "workload": {
            "writers": chosen.writers,
            "readers": chosen.readers,
            "periods_of_a_run": PERIODS,
            "selected": SELECTED,
            "pulls": PULLED,
            "samples_of_a_pool": POOL,
            "longest_pause_s": {"writer": WRITER_PAUSE_S, "reader": READER_PAUSE_S},
        },
        **figures,
    }
    print(report(result))
    if chosen.out:
        write_result(chosen.out, result)
    if any(figures["wrong"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
