"""A temporary catalog, and makers of pools and drafts."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from clusterucb_core.store import PoolVersion, SelectionDraft, open_catalog, record_pool

QUARANTINE_SCHEMA = {
    "source": pl.String,
    "row_number": pl.Int64,
    "reason": pl.String,
    "detail": pl.String,
    "raw": pl.String,
}


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "catalog.duckdb"


@pytest.fixture(scope="session")
def empty_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "catalog.duckdb"
    with open_catalog(path):
        pass
    return path


@pytest.fixture
def con(catalog_path: Path, empty_catalog: Path):
    catalog_path.parent.mkdir()
    shutil.copy(empty_catalog, catalog_path)
    with open_catalog(catalog_path) as connection:
        yield connection


def chat(text: str) -> str:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"answer to {text}"}]
    return json.dumps(turns, ensure_ascii=False)


@pytest.fixture
def add_pool(tmp_path: Path) -> Callable[..., PoolVersion]:
    """Record a pool of the given ids; the source is the id's first letter."""

    def add(con, ids: Sequence[str], *, digest: str | None = None, bad_rows: int = 0) -> PoolVersion:
        samples = tmp_path / "samples.parquet"
        pl.DataFrame(
            {
                "sample_id": list(ids),
                "source": [name[0] for name in ids],
                "messages": [chat(name) for name in ids],
                "n_chars": [len(name) for name in ids],
                "path": ["data/a.jsonl"] * len(ids),
                "row_number": list(range(len(ids))),
            }
        ).write_parquet(samples)
        quarantine = tmp_path / "quarantine.parquet"
        bad = [("a", row, "bad_json", "no object", "{") for row in range(bad_rows)]
        pl.DataFrame(bad, schema=QUARANTINE_SCHEMA, orient="row").write_parquet(quarantine)
        return record_pool(
            con,
            samples_parquet=samples,
            quarantine_parquet=quarantine,
            digest=digest or "+".join(sorted(ids)),
        )

    return add


def sample_rows(ids: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "rank": list(range(1, len(ids) + 1)),
            "sample_id": list(ids),
            "influence": [1.0 / rank for rank in range(1, len(ids) + 1)],
            "cluster": [0] * len(ids),
        }
    )


def pull_rows(ids: Sequence[str]) -> pl.DataFrame:
    n = len(ids)
    return pl.DataFrame(
        {
            "step": list(range(n)),
            "round": [0] * n,
            "cluster": [0] * n,
            "sample_id": list(ids),
            "reward": [0.5] * n,
            "kind": ["cold_start"] * n,
            "bound": [float("nan")] * n,
            "arm_mean": [0.25] * n,
            "arm_std": [0.0] * n,
            "arm_left": list(range(n, 0, -1)),
        }
    )


@pytest.fixture
def draft() -> Callable[..., SelectionDraft]:
    """Make a draft of the given ids; any field can be overridden."""

    def make(ids: Sequence[str] = ("a1", "a2"), **fields: Any) -> SelectionDraft:
        values: dict[str, Any] = {
            "run_id": "run-1",
            "period": 1,
            "pool_version": 1,
            "target": "gsm8k",
            "mode": "dynamic",
            "policy": "ucb_beta",
            "budget_samples": 3,
            "gradient_evaluations": 5,
            "gradient_evaluations_reused": 1,
            "target_gradient_evaluations": 2,
            "selection_flops": 3.5e18,
            "full_selection_flops": 4.5e20,
            "cost": {"clustering": {"gradient_evaluations": 4}},
            "config": {"seed": 0, "target": {"name": "gsm8k"}},
            "config_digest": "c0ffee",
            "code_version": "0.1.0",
            "mlflow_run_id": None,
            "flow_run_id": "flow-1",
            "pulls": pull_rows(ids),
            "samples": sample_rows(ids),
        }
        values |= fields
        values.setdefault("selection_key", f"{values['run_id']}/{values['target']}/{values['period']}")
        return SelectionDraft(**values)

    return make
