"""A catalog whose version 1 selects given conversations."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from clusterucb_core.pool.conversations import content_id
from clusterucb_core.records import Message
from clusterucb_core.store import SelectionDraft, open_catalog, publish_selections, record_pool


@pytest.fixture
def catalog(tmp_path: Path) -> Callable[..., Path]:
    """Make a catalog whose version 1 selects the conversations in the order given.

    `by_content`: their ids are those that an ingest gives; else the order of ids is not that of ranks.
    """

    def make(
        *conversations: list[dict[str, str]],
        by_content: bool = False,
        sources: Sequence[str] = (),
        influence: Sequence[float | None] = (),
    ) -> Path:
        ids = [
            content_id([Message(**turn) for turn in conversation]) if by_content else f"id{9 - place}"
            for place, conversation in enumerate(conversations)
        ]
        samples = pl.DataFrame(
            {
                "sample_id": ids,
                "source": list(sources) or ["gsm8k"] * len(ids),
                "messages": [json.dumps(conversation) for conversation in conversations],
                "n_chars": [1] * len(ids),
                "path": ["a.jsonl"] * len(ids),
                "row_number": list(range(len(ids))),
            }
        )
        samples.write_parquet(tmp_path / "samples.parquet")
        columns = {"source": [""], "row_number": [0], "reason": [""], "detail": [""], "raw": [""]}
        pl.DataFrame(columns).clear().write_parquet(tmp_path / "quarantine.parquet")
        path = tmp_path / "catalog.duckdb"
        with open_catalog(path) as con:
            record_pool(
                con,
                samples_parquet=tmp_path / "samples.parquet",
                quarantine_parquet=tmp_path / "quarantine.parquet",
                digest="pool",
            )
            publish_selections(con, [_selection(ids, influence=influence)])
        return path

    return make


@pytest.fixture
def new_selection() -> Callable[..., SelectionDraft]:
    """Make the draft of a selection of some samples."""
    return _selection


def _selection(ids: list[str], *, influence: Sequence[float | None] = (), **fields: Any) -> SelectionDraft:
    ranks = range(1, len(ids) + 1)
    scores = list(influence) or [1 / rank for rank in ranks]
    samples = {"rank": ranks, "sample_id": ids, "influence": scores, "cluster": ranks}
    values: dict[str, Any] = {
        "selection_key": "key",
        "run_id": "run",
        "period": 1,
        "pool_version": 1,
        "target": "gsm8k",
        "mode": "static",
        "policy": "full",
        "budget_samples": 2,
        "gradient_evaluations": 2,
        "gradient_evaluations_reused": 0,
        "target_gradient_evaluations": 1,
        "selection_flops": 1.0,
        "full_selection_flops": 1.0,
        "cost": {},
        "config": {},
        "config_digest": "",
        "code_version": "",
        "mlflow_run_id": None,
        "flow_run_id": None,
        "pulls": pl.DataFrame(),
        "samples": pl.DataFrame(samples),
    }
    return SelectionDraft(**(values | fields))
