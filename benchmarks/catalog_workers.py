"""One process of the load on a catalog: it writes or reads until its time is over, and prints what it saw.

    python benchmarks/catalog_workers.py write|read CATALOG NUMBER SECONDS

Writes pools, selections and evaluations to the catalog. What is wrong with what it reads is told, not mended.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from clusterucb_core.errors import CatalogBusy
from clusterucb_core.store import (
    EvaluationRow,
    SelectionDraft,
    diff_selections,
    latest_selections,
    list_selections,
    open_catalog,
    publish_selections,
    record_evaluations,
    record_pool,
    selection_samples,
)

PERIODS, SELECTED, PULLED, POOL = 2, 100, 200, 500
# Users think, and runs compute: seconds between two openings of one process, at most.
WRITER_PAUSE_S, READER_PAUSE_S = 0.4, 0.4
REPEATED = 0.2  # of the publications


@dataclass
class Log:
    """What one process did: waits and seconds by kind, what it wrote, and what was wrong."""

    waits: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    versions: dict[str, int] = field(default_factory=dict[str, int])
    pools: list[int] = field(default_factory=list[int])
    evaluations: int = 0
    busy: int = 0
    wrong: list[str] = field(default_factory=list[str])


def timed(log: Log, kind: str, catalog: Path, work: Callable[[Any], None]) -> None:
    """Open the catalog, do one piece of work, and log how long each took."""
    began = time.monotonic()
    try:
        with open_catalog(catalog, read_only=kind == "read") as con:
            log.waits.setdefault(kind, []).append(time.monotonic() - began)
            opened = time.monotonic()
            work(con)
        log.seconds.setdefault(kind, []).append(time.monotonic() - opened)
    except CatalogBusy:
        log.busy += 1
    except Exception as error:  # noqa: BLE001 - whatever a process meets is what this is about
        log.wrong.append(f"{kind}: {type(error).__name__}: {error}")


def write(catalog: Path, number: int, seconds: float) -> Log:
    """Publish selections, record pools and evaluations, in turn."""
    log, rng, deadline, count = Log(), random.Random(number), time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < deadline:
            count += 1
            _write_once(catalog, log, Path(folder), rng, f"run {number} {count}")
            time.sleep(rng.uniform(0, WRITER_PAUSE_S))
    return log


def _write_once(catalog: Path, log: Log, folder: Path, rng: random.Random, run_id: str) -> None:
    drafts = [_draft(run_id, period, rng) for period in range(1, PERIODS + 1)]
    timed(log, "pool", catalog, lambda con: _add_pool(con, log, folder, run_id))
    if not log.pools:  # it has given up waiting for the first one: there may be nothing to select from
        return
    timed(log, "publish", catalog, lambda con: _publish(con, log, drafts))
    timed(log, "evaluate", catalog, lambda con: _evaluate(con, log, run_id))
    if rng.random() < REPEATED:  # it writes nothing, and gets the versions that there are
        timed(log, "publish", catalog, lambda con: _publish(con, log, drafts))


def read(catalog: Path, number: int, seconds: float) -> Log:
    """List, show and compare selections, and hold them against what was read before."""
    log, rng, deadline = Log(), random.Random(-1 - number), time.monotonic() + seconds
    seen: dict[int, str] = {}
    while time.monotonic() < deadline:
        timed(log, "read", catalog, lambda con: _look(con, log, seen, rng))
        time.sleep(rng.uniform(0, READER_PAUSE_S))
    return log


def _look(con: Any, log: Log, seen: dict[int, str], rng: random.Random) -> None:
    found = list_selections(con)
    keys = {item.selection_version: item.selection_key for item in found}
    if sorted(keys) != list(range(1, len(found) + 1)):
        log.wrong.append(f"the versions are not 1 to {len(found)}")
    if any(keys.get(version) != key for version, key in seen.items()):
        log.wrong.append("a version that was read before is gone, or another")
    seen.update(keys)
    if len(found) % PERIODS or not found:
        if found:
            log.wrong.append(f"{len(found)} versions: a run of {PERIODS} periods is there in part")
        return
    looked_at = [*found[-2:], rng.choice(found)]
    for item in looked_at:
        ranks = selection_samples(con, item.selection_version)["rank"].to_list()
        if ranks != list(range(1, item.n_selected + 1)):
            log.wrong.append(f"version {item.selection_version} has {len(ranks)} of {item.n_selected} rows")
    changes = diff_selections(con, looked_at[0].selection_version, looked_at[-1].selection_version)
    if len(changes.filter(pl.col("change") != "added")) != SELECTED:
        log.wrong.append("a difference does not hold every sample of the first version")
    if latest_selections(con)[-1].period != PERIODS:
        log.wrong.append("the latest selection is not the last period of a run")


def _add_pool(con: Any, log: Log, folder: Path, digest: str) -> None:
    samples, quarantine = folder / "samples.parquet", folder / "quarantine.parquet"
    ids = [f"{digest} {row}" if row < 10 else f"s{row}" for row in range(POOL)]
    messages = json.dumps([{"role": "user", "content": "made up"}])
    columns = {"sample_id": ids, "source": "made up", "messages": messages, "n_chars": 7, "path": "made up"}
    pl.DataFrame(columns).with_row_index("row_number").with_columns(
        pl.col("row_number", "n_chars").cast(pl.Int64)
    ).write_parquet(samples)
    kinds = {"source": pl.String, "row_number": pl.Int64, "reason": pl.String, "detail": pl.String}
    pl.DataFrame(schema=kinds | {"raw": pl.String}).write_parquet(quarantine)
    version = record_pool(con, samples_parquet=samples, quarantine_parquet=quarantine, digest=digest)
    log.pools.append(version.pool_version)


def _publish(con: Any, log: Log, drafts: Sequence[SelectionDraft]) -> None:
    for draft, version in zip(drafts, publish_selections(con, drafts), strict=True):
        if log.versions.setdefault(draft.selection_key, version) != version:
            log.wrong.append(f"{draft.selection_key} was published twice")


def _evaluate(con: Any, log: Log, run_id: str) -> None:
    version = log.versions.get(f"{run_id} {PERIODS}")
    if version is not None:
        row = EvaluationRow(version, run_id, "selection", "made up", "loss", 1.0, 0.5, 1.5, 10)
        record_evaluations(con, [row])
        log.evaluations += 1


def _draft(run_id: str, period: int, rng: random.Random) -> SelectionDraft:
    drawn = [f"s{row}" for row in rng.sample(range(10, POOL), PULLED)]
    pulls = pl.DataFrame(
        {
            "step": list(range(PULLED)),
            "round": [0] * PULLED,
            "cluster": [0] * PULLED,
            "sample_id": drawn,
            "reward": [0.5] * PULLED,
            "kind": ["draw"] * PULLED,
            "bound": [1.0] * PULLED,
            "arm_mean": [0.5] * PULLED,
            "arm_std": [0.1] * PULLED,
            "arm_left": list(range(PULLED))[::-1],
        }
    )
    best = pulls.head(SELECTED).select("sample_id", "cluster", influence="reward")
    return SelectionDraft(
        selection_key=f"{run_id} {period}",
        run_id=run_id,
        period=period,
        pool_version=1,
        target="made up",
        mode="dynamic",
        policy="ucb_beta",
        budget_samples=PULLED,
        gradient_evaluations=PULLED,
        gradient_evaluations_reused=0,
        target_gradient_evaluations=0,
        selection_flops=1.0,
        full_selection_flops=5.0,
        cost={"draw": {"gradient_evaluations": PULLED}},
        config={"seed": 0},
        config_digest="made up",
        code_version="benchmark",
        mlflow_run_id=None,
        flow_run_id=None,
        pulls=pulls,
        samples=best.with_row_index("rank", offset=1),
    )


if __name__ == "__main__":
    part, place, worker, for_s = sys.argv[1:]
    done = {"write": write, "read": read}[part](Path(place), int(worker), float(for_s))
    print(json.dumps(asdict(done)))
