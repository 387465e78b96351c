"""A kept result is found as long as everything that it rests on is there, and only then."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from clusterucb_core.artifacts import (
    MANIFEST,
    discard_artifact,
    find_artifact,
    new_artifact,
    read_manifest,
)
from clusterucb_core.config import RunConfig
from clusterucb_core.errors import DamagedCatalog
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.outcome import RunResult, TargetResult, finished_result, keep_result, target_results
from clusterucb_core.planning import RunPlan
from clusterucb_core.restoration import choose_backup, restore_catalog
from clusterucb_core.stages.intake import IngestSpec, TargetSpec
from clusterucb_core.stages.models import ModelRef
from clusterucb_core.stages.summary import TargetOutcome, Trajectory, Work
from clusterucb_core.store import (
    SelectionDraft,
    backup_catalog,
    open_catalog,
    publish_selections,
    record_pool,
)
from clusterucb_core.workspace import Workspace

TREE = {
    "pool": {"sources": [{"path": "pool.jsonl"}]},
    "target": {"name": "sums", "validation": "target.jsonl"},
    "model": {"base": "model"},
}


@pytest.fixture
def make_plan(tmp_path):
    """Build a plan by hand; nothing that it names exists."""

    def make(run_id="run", selection_key="selection", home="home", storage_root=None) -> RunPlan:
        config = RunConfig.model_validate(TREE)
        return RunPlan(
            run_id=run_id,
            lineage="lineage",
            selection_keys={"sums": selection_key},
            config=config,
            config_digest="digest",
            code_version="1",
            execution=ExecutionSettings(),
            workspace=Workspace(home=str(tmp_path / home), storage_root=storage_root),
            model=ModelRef(settings=config.model, digest="model", n_parameters=9, n_lora_parameters=3),
            ingest=IngestSpec(settings=config.pool, base_folder="/", key="pool"),
            targets=(TargetSpec(settings=config.all_targets[0], base_folder="/", digest="target"),),
        )

    return make


def publish(plan: RunPlan, periods: int = 2) -> tuple[int, ...]:
    """Write a pool of three samples and the versions of a run into the plan's catalog."""
    home = Path(plan.workspace.home)
    home.mkdir(parents=True, exist_ok=True)
    ids = ["a", "b", "c"]
    columns = {"source": ["s"] * 3, "messages": ["[]"] * 3, "n_chars": [1] * 3, "path": ["p"] * 3}
    pl.DataFrame({"sample_id": ids, **columns, "row_number": [1, 2, 3]}).write_parquet(
        home / "samples.parquet"
    )
    names = ["source", "row_number", "reason", "detail", "raw"]
    kinds = {name: pl.Int64 if name == "row_number" else pl.String for name in names}
    pl.DataFrame(schema=kinds).write_parquet(home / "quarantine.parquet")
    with open_catalog(plan.workspace.catalog) as con:
        record_pool(
            con,
            samples_parquet=home / "samples.parquet",
            quarantine_parquet=home / "quarantine.parquet",
            digest="pool",
        )
        return tuple(publish_selections(con, [draft(plan, period) for period in range(1, periods + 1)]))


def draft(plan: RunPlan, period: int) -> SelectionDraft:
    samples = pl.DataFrame({"rank": [1], "sample_id": ["b"], "influence": [0.5], "cluster": [0]})
    names = [
        "step",
        "round",
        "cluster",
        "sample_id",
        "reward",
        "kind",
        "bound",
        "arm_mean",
        "arm_std",
        "arm_left",
    ]
    return SelectionDraft(
        selection_key=f"{plan.selection_keys['sums']}-{period}",
        run_id=plan.run_id,
        period=period,
        pool_version=1,
        target="sums",
        mode="dynamic",
        policy="ucb_beta",
        budget_samples=2,
        gradient_evaluations=3,
        gradient_evaluations_reused=0,
        target_gradient_evaluations=1,
        selection_flops=1.0,
        full_selection_flops=2.0,
        cost={},
        config={},
        config_digest="digest",
        code_version="1",
        mlflow_run_id=None,
        flow_run_id=None,
        pulls=pl.DataFrame(schema=dict.fromkeys(names, pl.Float64)),
        samples=samples,
    )


def finish(plan: RunPlan) -> RunResult:
    """Publish a run's versions, write one training artifact, and keep the result."""
    versions = publish(plan)
    with new_artifact(plan.workspace.artifacts, "training", "t", {}):
        pass
    result = RunResult(
        run_id=plan.run_id,
        pool_version=1,
        versions=versions,
        selection_version=versions[-1],
        subjects=(),
        targets=(
            TargetResult(target="sums", versions=versions, selection_version=versions[-1], subjects=()),
        ),
        work=Work(gradient_evaluations=75, trainings=2),
        checkpoints=(str(plan.workspace.artifacts / "training" / "t"),),
        mlflow_run_id="mlflow",
        seconds=12.5,
    )
    keep_result(plan, result)
    return result


def test_a_run_that_never_finished_has_no_result(make_plan):
    assert finished_result(make_plan()) is None


def test_a_repeat_finds_the_result_and_counts_no_work(make_plan):
    result = finish(make_plan())
    nothing = Work(gradient_evaluations=0, trainings=0)
    assert finished_result(make_plan()) == result.model_copy(update={"work": nothing, "seconds": 0.0})
    assert finished_result(make_plan(run_id="other")) is None


def test_a_missing_checkpoint_voids_the_result(make_plan):
    plan = make_plan()
    shutil.rmtree(finish(plan).checkpoints[0])
    assert finished_result(plan) is None


def test_a_missing_catalog_voids_the_result(make_plan):
    plan = make_plan()
    finish(plan)
    plan.workspace.catalog.unlink()
    assert finished_result(plan) is None


def test_a_catalog_that_is_to_be_migrated_first_voids_the_result(make_plan):
    plan = make_plan()
    finish(plan)
    with open_catalog(plan.workspace.catalog) as con:
        con.execute("UPDATE catalog_schema SET schema_version = 1")
    assert finished_result(plan) is None


def test_versions_of_another_run_void_the_result(make_plan):
    plan = make_plan()
    finish(plan)
    plan.workspace.catalog.unlink()
    assert publish(make_plan(run_id="other", selection_key="other selection")) == (1, 2)
    assert finished_result(plan) is None


def test_a_repeat_after_a_restoration_publishes_again_under_new_numbers(make_plan):
    first, second = make_plan("first", "first"), make_plan("second", "second")
    assert finish(first).versions == (1, 2)
    backup_catalog(first.workspace)
    assert finish(second).versions == (3, 4)
    restore_catalog(choose_backup(first.workspace, None), first.workspace)
    assert finished_result(first) is not None
    assert finished_result(second) is None, "its versions are not there"
    assert finish(second).versions == (5, 6)
    kept = finished_result(second)
    assert kept is not None
    assert kept.versions == (5, 6)


def test_a_damaged_catalog_is_told_before_anything_is_computed(make_plan):
    plan = make_plan()
    finish(plan)
    image = bytearray(plan.workspace.catalog.read_bytes())
    for place in range(12288 + 1000, len(image), 262144):
        image[place] ^= 1
    plan.workspace.catalog.write_bytes(image)
    with pytest.raises(DamagedCatalog, match="is damaged"):
        finished_result(plan)


def test_results_are_told_target_by_target():
    outcomes = [
        TargetOutcome(
            target=name,
            chosen=Trajectory(subject="selection", periods=(), checkpoint=None, trainings=()),
            versions=versions,
            subjects=(),
        )
        for name, versions in (("a", (1, 2)), ("b", (3, 4)))
    ]
    found = [(item.target, item.versions, item.selection_version) for item in target_results(outcomes)]
    assert found == [("a", (1, 2), 2), ("b", (3, 4), 4)]


def test_a_result_that_no_longer_holds_is_replaced(make_plan):
    plan = make_plan()
    finish(plan)
    plan.workspace.catalog.unlink()
    publish(make_plan(run_id="other", selection_key="other selection"))
    assert finish(plan).versions == (3, 4)
    found = finished_result(plan)
    assert found is not None
    assert found.versions == (3, 4)


def test_a_result_that_holds_stays_as_it_was(make_plan):
    plan = make_plan()
    first = finish(plan)
    keep_result(plan, first.model_copy(update={"mlflow_run_id": "later"}))
    found = finished_result(plan)
    assert found is not None
    assert found.mlflow_run_id == "mlflow"


def test_homes_that_share_their_artifacts_keep_results_of_their_own(make_plan, tmp_path):
    first = make_plan(home="first", storage_root=str(tmp_path / "shared"))
    second = make_plan(home="second", storage_root=str(tmp_path / "shared"))
    finish(first)
    assert finished_result(second) is None
    publish(make_plan(run_id="other", selection_key="other selection", home="second"))
    assert finish(second).versions == (3, 4)
    assert [finished_result(plan).versions for plan in (first, second)] == [(1, 2), (3, 4)]  # pyright: ignore


@pytest.mark.parametrize("text", ["", "{}", "null", '{"run_id": 3}', "\x00"])
def test_a_result_that_cannot_be_read_is_made_anew(make_plan, text, caplog):
    plan = make_plan()
    finish(plan)
    root, kept = plan.workspace.artifacts, find_artifact(plan.workspace.artifacts, "runs", plan.run_id)
    manifest = read_manifest(kept)
    discard_artifact(root, "runs", plan.run_id)
    with new_artifact(root, "runs", plan.run_id, manifest) as folder:
        (folder / "result.json").write_text(text)
    assert finished_result(plan) is None
    assert "cannot be read and is made anew" in caplog.text
    finish(plan)
    assert finished_result(plan) is not None


@pytest.mark.parametrize("name", ["result.json", MANIFEST])
@pytest.mark.parametrize("way", ["flipped", "truncated", "extended", "deleted"])
def test_a_damaged_result_is_made_anew(make_plan, damage, caplog, name, way):
    plan = make_plan()
    finish(plan)
    (kept,) = Path(plan.workspace.home).glob(f"artifacts/runs/*/{name}")
    damage[way](kept)
    assert finished_result(plan) is None
    assert (str(kept) in caplog.text) is ((name, way) != (MANIFEST, "deleted"))
    finish(plan)
    assert finished_result(plan) is not None


def test_a_damaged_checkpoint_voids_the_result(make_plan, damage, caplog):
    plan = make_plan()
    folder = finish(plan).checkpoints[0]
    damage["flipped"](Path(folder) / MANIFEST)
    assert finished_result(plan) is None
    assert f"{folder}/{MANIFEST} is damaged" in caplog.text


def test_a_damaged_trail_voids_the_result_so_that_the_run_writes_it_anew(make_plan, damage, caplog):
    plan = make_plan()
    finish(plan)
    with new_artifact(plan.workspace.artifacts, "trails", plan.run_id, {}) as folder:
        (folder / "trail.json").write_text("{}")
    assert finished_result(plan) is not None
    damage["flipped"](plan.workspace.artifacts / "trails" / plan.run_id / "trail.json")
    assert finished_result(plan) is None
    assert "trail.json is damaged" in caplog.text
