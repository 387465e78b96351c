"""A catalog with two selections of one target, whose texts and names are as hostile as a pool may hold."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from clusterucb_core.records import StageTime
from clusterucb_core.store import (
    ComparisonRow,
    EvaluationRow,
    SelectionDraft,
    open_catalog,
    publish_selections,
    record_clusters,
    record_comparisons,
    record_evaluations,
    record_pool,
    record_stages,
)

HOSTILE = (
    "<script>alert(1)</script>", "</style><h1>big", "<!-- ", "]]> &amp; \" '", "\x00\x1b[2J", "\u202egnp.exe",
    "<img src=x onerror=alert(1)>", "{{ 7 * 7 }} {% raw %}",
)  # fmt: skip
SOURCES = ("plain", '<b>&"$x$', "long " * 20)
N, K = 60, 8
RNG = np.random.default_rng(3)
REWARDS = RNG.normal(size=N).round(6)
CLUSTERS = RNG.integers(0, 4, size=N)


def sample_id(row: int) -> str:
    return f"s{row:02d}"


def pulls(rows: list[int], *, seed: int) -> pl.DataFrame:
    n, rng = len(rows), np.random.default_rng(seed)
    chance = np.arange(n) < 6
    bound = np.where(chance, np.nan, rng.normal(size=n).round(6))
    return pl.DataFrame(
        {
            "step": np.arange(n),
            "round": np.arange(n) // 5,
            "cluster": CLUSTERS[rows],
            "sample_id": [sample_id(row) for row in rows],
            "reward": REWARDS[rows],
            "kind": ["cold_start"] * 6 + ["draw"] * (n - 10) + ["audit"] * 4,
            "bound": pl.Series(bound).fill_nan(None),
            "arm_mean": rng.normal(size=n),
            "arm_std": rng.random(n),
            "arm_left": np.arange(n, 0, -1),
        }
    )


def chosen(rows: list[int]) -> pl.DataFrame:
    best = sorted(rows, key=lambda row: -REWARDS[row])[:K]
    return pl.DataFrame(
        {
            "rank": range(1, K + 1),
            "sample_id": [sample_id(row) for row in best],
            "influence": REWARDS[best],
            "cluster": CLUSTERS[best],
        }
    )


def draft(run: str, rows: list[int], **fields) -> SelectionDraft:
    return SelectionDraft(
        **{
            "selection_key": f"key of {run}", "run_id": run, "period": 1, "pool_version": 1,
            "target": "sums & <b>", "mode": "dynamic", "policy": "linucb", "budget_samples": 40,
            "gradient_evaluations": 1234, "gradient_evaluations_reused": 56,
            "target_gradient_evaluations": 12, "selection_flops": 1.5e12, "full_selection_flops": 6e12,
            "cost": {
                "clustering": {"gradient_evaluations": 1000, "flops": 1e12},
                "selection": {"gradient_evaluations": 234, "flops": 0.5e12},
                "full": {"gradient_evaluations": 9876, "flops": 6e12},
            },
            "config": {"seed": 5, "model": {"base": "models/<i>"}}, "config_digest": "d",
            "code_version": "0.1",
            "mlflow_run_id": None, "flow_run_id": "flow-1", "pulls": pulls(rows, seed=len(run)),
            "samples": chosen(rows), "estimated_recall": 0.75, "recall_low": 0.5, "recall_high": 0.9,
            "estimated_captured": 0.8125, "captured_low": 0.6, "captured_high": 0.95, "separation_p": 0.0001,
        } | fields
    )  # fmt: skip


def evaluations(run: str, version: int) -> list[EvaluationRow]:
    values = {"selection": 2.0, "full": 1.9, "zero_shot": 3.25, "random:0": 2.5, "random:1": 2.75}
    rows = []
    for subject, value in values.items():
        own = version if subject == "selection" else None
        task = "sums & <b>"
        rows += [
            EvaluationRow(own, run, subject, task, "loss", value, value - 0.1, value + 0.1, 50, task),
            EvaluationRow(own, run, subject, "sums_generate", "exact_match", 1 / value, 0.1, 0.9, 50, task),
        ]
    rows.append(
        EvaluationRow(version, run, "selection", task, "captured_influence", 0.97, None, None, K, task)
    )
    return rows


def comparisons(run: str, version: int) -> list[ComparisonRow]:
    made = {
        "random": (-0.6, -0.8, -0.4, False),
        "full": (0.1, -0.05, 0.25, False),
        "zero_shot": (2.0, 1.0, 3.0, True),
    }
    return [
        ComparisonRow(version, run, "sums & <b>", name, "sums & <b>", "loss", value, low, high, higher, 50, 2)
        for name, (value, low, high, higher) in made.items()
    ]


@pytest.fixture
def catalog(tmp_path, kept_catalog):
    """A catalog of a test's own."""
    path = tmp_path / "home" / "catalog.duckdb"
    path.parent.mkdir()
    shutil.copy(kept_catalog, path)
    return path


@pytest.fixture(scope="session")
def kept_catalog(tmp_path_factory):
    """Version 1 and version 2, the second with all that a report can tell; no test writes to it."""
    tmp_path = tmp_path_factory.mktemp("reports")
    path = tmp_path / "home" / "catalog.duckdb"
    path.parent.mkdir()
    turns = [
        [
            {"role": "user", "content": f"{HOSTILE[row % len(HOSTILE)]} {row}"},
            {"role": "assistant", "content": f"answer {row}"},
        ]
        for row in range(N)
    ]
    samples, quarantine = tmp_path / "samples.parquet", tmp_path / "quarantine.parquet"
    pl.DataFrame(
        {
            "sample_id": [sample_id(row) for row in range(N)],
            "source": [SOURCES[row % 3] for row in range(N)],
            "messages": [json.dumps(item) for item in turns],
            "n_chars": [1] * N,
            "path": ["p"] * N,
            "row_number": range(N),
        }
    ).write_parquet(samples)
    names = ("source", "row_number", "reason", "detail", "raw")
    pl.DataFrame(schema=dict.fromkeys(names, pl.String)).cast({"row_number": pl.Int64}).write_parquet(
        quarantine
    )
    with open_catalog(path) as con:
        record_pool(con, samples_parquet=samples, quarantine_parquet=quarantine, digest="pool")
        record_clusters(con, "clustering", [sample_id(row) for row in range(N)], CLUSTERS)
        publish_selections(con, [draft("run-1", list(range(30)))])
        publish_selections(con, [draft("run-2", list(range(10, 50)))])
        record_evaluations(con, evaluations("run-2", 2))
        record_comparisons(con, comparisons("run-2", 2))
        times = [
            StageTime(stage=name, calls=3, cached=1, seconds=12.34) for name in ("warmup", "cluster pool")
        ]
        record_stages(con, "run-2", "flow-1", times)
        record_stages(con, "run-2", "flow-2", times)
    return path
