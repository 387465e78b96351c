"""A kept comparison is found again whole, and made anew where it cannot be read."""

from pathlib import Path

import polars as pl
import pytest

from clusterucb_core.artifacts import MANIFEST, new_artifact
from clusterucb_core.comparison import (
    CHART,
    REPLAYS,
    RESULT,
    TABLE,
    ComparisonResult,
    comparison_table,
    copy_files,
    finished_comparison,
    keep_comparison,
    kept_replays,
)
from clusterucb_core.config import RunConfig
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.comparison import REPLAYS as ROWS
from clusterucb_core.stages.comparison import SCHEMA
from clusterucb_core.stages.comparison_summary import SettingSummary
from clusterucb_core.stages.intake import IngestSpec, TargetSpec
from clusterucb_core.stages.models import ModelRef
from clusterucb_core.stages.summary import Work
from clusterucb_core.workspace import Workspace

LINES = (
    SettingSummary(
        target="sums",
        policy="ucb1",
        budget_fraction=0.1,
        replays=2,
        captured_influence=0.5,
        captured_by_period=(0.25, 0.75),
        flops_share=0.3,
    ),
    SettingSummary(target="sums", policy="full", budget_fraction=None, captured_influence=1.0),
)
RESULT_OF = ComparisonResult(
    run_id="run",
    targets=("sums",),
    mode="dynamic",
    n_samples=20,
    periods=(2, 3),
    seeds=1,
    audit_fraction=0.0,
    settings=LINES,
    folder="",
    work=Work(gradient_evaluations=60, trainings=3),
    mlflow_run_id="m",
    seconds=9.5,
)


@pytest.fixture
def plan(tmp_path) -> RunPlan:
    tree = {
        "pool": {"sources": [{"path": "pool.jsonl"}]},
        "target": {"name": "sums", "validation": "target.jsonl"},
        "model": {"base": "model"},
    }
    config = RunConfig.model_validate(tree)
    target = TargetSpec(settings=config.all_targets[0], base_folder="", digest="t")
    return RunPlan(
        run_id="run",
        lineage="lineage",
        selection_keys={"sums": "selection"},
        config=config,
        config_digest="digest",
        code_version="1",
        execution=ExecutionSettings(),
        workspace=Workspace(home=str(tmp_path / "home")),
        model=ModelRef(settings=config.model, digest="m", n_parameters=1, n_lora_parameters=1),
        ingest=IngestSpec(settings=config.pool, base_folder="", key="i"),
        targets=(target,),
    )


@pytest.fixture
def replays(tmp_path) -> ArtifactRef:
    rows = [dict.fromkeys(SCHEMA) | {"policy": "ucb1", "period": period} for period in (2, 3)]
    with new_artifact(tmp_path, "comparison", "key", {}) as folder:
        pl.DataFrame(rows, schema=SCHEMA).write_parquet(folder / ROWS)
    return ArtifactRef(stage="comparison", fingerprint="key", path=str(tmp_path / "comparison" / "key"))


def test_a_repeat_finds_the_result_with_no_work_of_its_own(plan, replays):
    assert finished_comparison(plan) is None
    kept = keep_comparison(plan, RESULT_OF, [replays])
    assert {path.name for path in Path(kept.folder).iterdir()} >= {TABLE, CHART, REPLAYS, RESULT}
    nothing = Work(gradient_evaluations=0, trainings=0)
    assert finished_comparison(plan) == kept.model_copy(update={"work": nothing, "seconds": 0.0})


@pytest.mark.parametrize("name", [RESULT, TABLE, CHART, REPLAYS, MANIFEST])
def test_a_damaged_result_is_made_anew(plan, replays, damage, caplog, name):
    kept = keep_comparison(plan, RESULT_OF, [replays])
    damage["flipped"](Path(kept.folder) / name)
    assert finished_comparison(plan) is None
    assert f"{name} is damaged" in caplog.text
    keep_comparison(plan, RESULT_OF, [replays])
    assert finished_comparison(plan) is not None


def test_the_table_has_one_row_for_every_setting(plan, replays):
    kept = keep_comparison(plan, RESULT_OF, [replays])
    found = pl.read_csv(Path(kept.folder) / TABLE)
    assert found.columns == list(SettingSummary.model_fields)
    assert found["policy"].to_list() == ["ucb1", "full"]
    assert found["captured_by_period"].to_list() == ["0.2500 0.7500", ""]
    assert comparison_table(LINES)["budget_fraction"].to_list() == [0.1, None]


def test_the_files_are_copied_where_they_are_wanted(plan, replays, tmp_path):
    kept = keep_comparison(plan, RESULT_OF, [replays])
    copied = copy_files(kept, tmp_path / "out" / "here")
    assert copied.folder == str(tmp_path / "out" / "here")
    for name in (TABLE, CHART, REPLAYS):
        assert (Path(copied.folder) / name).read_bytes() == (Path(kept.folder) / name).read_bytes()
    assert kept_replays(copied)["period"].to_list() == [2, 3]
