"""The run that a re-selection follows: the newest of its lineage whose selections the catalog holds."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.config import RunConfig
from clusterucb_core.errors import MissingArtifact
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.selection import SelectionSettings
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.intake import IngestSpec, TargetSpec
from clusterucb_core.stages.models import ModelRef
from clusterucb_core.stages.publication import PeriodDraws
from clusterucb_core.stages.summary import Trajectory
from clusterucb_core.store import SelectionDraft, open_catalog, publish_selections, record_pool
from clusterucb_core.trails import (
    TRAIL,
    RunTrail,
    TargetTrail,
    followed_trail,
    keep_trail,
    newest_trails,
    run_trail,
    trail_of,
)
from clusterucb_core.workspace import Workspace

TREE = {
    "pool": {"sources": [{"path": "pool.jsonl"}]},
    "target": {"name": "sums", "validation": "target.jsonl"},
    "model": {"base": "model"},
}
PULLS = (
    "step", "round", "cluster", "sample_id", "reward", "kind", "bound", "arm_mean", "arm_std", "arm_left",
)  # fmt: skip
QUARANTINE = {"source": pl.String, "row_number": pl.Int64, "reason": pl.String, "detail": pl.String}


@pytest.fixture
def plan(tmp_path):
    """Build a plan by hand; nothing that it names exists."""

    def make(run_id: str, lineage: str = "lineage") -> RunPlan:
        config = RunConfig.model_validate(TREE)
        return RunPlan(
            run_id=run_id,
            lineage=lineage,
            selection_keys={"sums": f"selection of {run_id}"},
            config=config,
            config_digest="digest",
            code_version="1",
            execution=ExecutionSettings(),
            workspace=Workspace(home=str(tmp_path)),
            model=ModelRef(settings=config.model, digest="model", n_parameters=9, n_lora_parameters=3),
            ingest=IngestSpec(settings=config.pool, base_folder="/", key="pool"),
            targets=(TargetSpec(settings=config.all_targets[0], base_folder="/", digest="target"),),
        )

    return make


@pytest.fixture
def finish(tmp_path):
    """Publish one selection of a plan, write the artifacts that it rests on, and keep its trail."""

    def artifact(stage: str, key: str) -> ArtifactRef:
        with new_artifact(tmp_path / "artifacts", stage, key, {}):
            pass
        return ArtifactRef(stage=stage, fingerprint=key, path=str(tmp_path / "artifacts" / stage / key))

    def run(plan: RunPlan) -> RunTrail:
        candidates, draws = artifact("candidates", "c"), artifact("draws", plan.run_id)
        spec = DrawSpec(
            settings=SelectionSettings(),
            target=artifact("target", "t"),
            tokens=artifact("tokens", "t"),
            candidates=candidates,
            period=1,
            seed=0,
            max_excluded_fraction=0.0,
        )
        chosen = Trajectory(
            subject="selection", periods=(PeriodDraws(spec=spec, draws=draws),), checkpoint=None, trainings=()
        )
        with open_catalog(plan.workspace.catalog) as con:
            pool = record_pool(con, **pool_files(tmp_path), digest="pool")
            target = TargetTrail(target="sums", candidates=candidates, versions=(1,), subjects=(chosen,))
            keys = run_trail(plan, pool, [target], at_warmup=candidates, inputs=[]).version_keys
            (version,) = publish_selections(con, [draft(plan, keys[0])])
        numbered = target.model_copy(update={"versions": (version,)})
        trail = run_trail(plan, pool, [numbered], at_warmup=candidates, inputs=[candidates])
        keep_trail(trail, plan.workspace)
        return trail

    return run


def pool_files(folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.parquet" for name in ("samples_parquet", "quarantine_parquet")}
    row = {"sample_id": "b", "source": "s", "messages": "[]", "n_chars": 1, "path": "p", "row_number": 1}
    pl.DataFrame([row]).write_parquet(files["samples_parquet"])
    pl.DataFrame(schema=QUARANTINE | {"raw": pl.String}).write_parquet(files["quarantine_parquet"])
    return files


def draft(plan: RunPlan, key: str) -> SelectionDraft:
    return SelectionDraft(
        selection_key=key, run_id=plan.run_id, period=1, pool_version=1, target="sums", mode="static",
        policy="linucb", budget_samples=1, gradient_evaluations=1, gradient_evaluations_reused=0,
        target_gradient_evaluations=1, selection_flops=1.0, full_selection_flops=1.0, cost={}, config={},
        config_digest="d", code_version="1", mlflow_run_id=None, flow_run_id=None,
        pulls=pl.DataFrame(schema=dict.fromkeys(PULLS, pl.Float64)),
        samples=pl.DataFrame({"rank": [1], "sample_id": ["b"], "influence": [0.5], "cluster": [0]}),
    )  # fmt: skip


def test_the_newest_run_of_the_lineage_is_followed(plan, finish):
    finish(plan("first"))
    newest = finish(plan("second"))
    finish(plan("stranger", lineage="other"))
    assert followed_trail(plan("third")) == newest
    assert [trail.run_id for trail in newest_trails(plan("third").workspace)] == [
        "stranger",
        "second",
        "first",
    ]


def test_without_a_finished_run_there_is_nothing_to_follow(plan, finish):
    with pytest.raises(MissingArtifact, match="no finished run with these settings"):
        followed_trail(plan("first"))
    finish(plan("first", lineage="other"))
    with pytest.raises(MissingArtifact, match="clusterucb run CONFIG"):
        followed_trail(plan("first"))


def test_a_run_whose_draws_are_gone_cannot_be_followed(plan, finish):
    trail = finish(plan("first"))
    gone = trail.targets[0].chosen.periods[0].draws.path
    shutil.rmtree(gone)
    with pytest.raises(MissingArtifact, match=f"1 of its artifacts are gone, the first {gone}"):
        followed_trail(plan("second"))


def test_a_run_whose_versions_are_those_of_another_catalog_is_passed_over(plan, finish):
    finish(plan("first"))
    plan("first").workspace.catalog.unlink()
    finish(plan("other", lineage="other"))
    assert [trail.run_id for trail in newest_trails(plan("first").workspace)] == ["other"]


def test_a_trail_that_cannot_be_read_is_passed_over_with_a_warning(plan, finish, caplog):
    finish(plan("first"))
    finish(plan("second"))
    (plan("second").workspace.artifacts / "trails" / "second" / TRAIL).write_text('{"run_id": "second"}')
    assert followed_trail(plan("third")).run_id == "first"
    assert "cannot be read and is passed over" in caplog.text


def test_a_later_attempt_of_a_run_replaces_its_trail(plan, finish):
    finish(plan("first"))
    plan("first").workspace.catalog.unlink()
    finish(plan("other", lineage="other"))
    again = finish(plan("first"))
    assert again.targets[0].versions == (2,)
    assert trail_of(plan("first")) == again
