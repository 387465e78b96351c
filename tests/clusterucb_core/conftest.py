"""Finished runs made by hand: their plans, their trails, and the selections that the catalog holds."""

from pathlib import Path

import polars as pl
import pytest

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.config import RunConfig
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
from clusterucb_core.trails import RunTrail, TargetTrail, keep_trail, run_trail
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
def plan_of(tmp_path):
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

    def run(plan: RunPlan, root: Path = tmp_path / "artifacts") -> RunTrail:
        def artifact(stage: str, key: str) -> ArtifactRef:
            with new_artifact(root, stage, key, {}):
                pass
            return ArtifactRef(stage=stage, fingerprint=key, path=str(root / stage / key))

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
