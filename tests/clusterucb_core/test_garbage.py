"""What no kept run needs is removed; what a kept run refers to, and what is young, stays."""

import os
import shutil
import time
from pathlib import Path

import polars as pl
import pytest

from clusterucb_core.artifacts import MANIFEST, new_artifact
from clusterucb_core.errors import StaleArtifact
from clusterucb_core.features.projections import ProjectionName
from clusterucb_core.garbage import collect_garbage, needed_places
from clusterucb_core.object_store import put_artifact, remove_artifact, store_of
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.models import CheckpointRef, FeatureSpace, ModelRef
from clusterucb_core.stages.scores import plain_space
from clusterucb_core.store import open_catalog, record_feature_rows
from clusterucb_core.workspace import Workspace, stage_key

AN_HOUR = 3600.0


@pytest.fixture
def workspace(tmp_path):
    return Workspace(home=str(tmp_path))


def make_old(root: Path) -> None:
    """Make everything below a folder two hours old."""
    past = time.time() - 2 * AN_HOUR
    for path in [*root.rglob("*"), root]:
        os.utime(path, (past, past))


def write(workspace: Workspace, stage: str, key: str) -> Path:
    with new_artifact(workspace.artifacts, stage, key, {}) as folder:
        (folder / "content").write_bytes(b"x" * 1000)
    return workspace.artifacts / stage / key


def test_artifacts_of_runs_beyond_the_newest_are_removed(plan_of, finish, workspace):
    first, second = finish(plan_of("first")), finish(plan_of("second"))
    make_old(workspace.artifacts)
    removed = collect_garbage(workspace, keep_runs=1, grace_s=AN_HOUR)
    # both share their candidates, tokens and target; each has draws of its own
    assert removed.artifacts == {"draws": 1}
    assert removed.kept_runs == ("second",)
    assert not Path(first.targets[0].chosen.periods[0].draws.path).exists()
    assert Path(second.targets[0].chosen.periods[0].draws.path).exists()
    assert collect_garbage(workspace, keep_runs=1, grace_s=AN_HOUR).artifacts == {}


def test_all_artifacts_of_kept_runs_stay(plan_of, finish, workspace):
    finish(plan_of("first"))
    finish(plan_of("second"))
    make_old(workspace.artifacts)
    assert collect_garbage(workspace, keep_runs=2, grace_s=AN_HOUR).artifacts == {}


def test_what_is_young_or_a_result_stays_and_old_drafts_go(plan_of, finish, workspace):
    finish(plan_of("first"))
    orphan, result = write(workspace, "training", "orphan"), write(workspace, "runs", "older")
    draft = workspace.artifacts / "training" / ".killed.tmp"
    draft.mkdir()
    make_old(workspace.artifacts)
    young = write(workspace, "training", "young")
    told = collect_garbage(workspace, keep_runs=1, grace_s=AN_HOUR, dry_run=True)
    assert told.artifacts == {"training": 2}
    assert told.bytes["training"] >= 1000
    assert orphan.exists()
    assert collect_garbage(workspace, keep_runs=1, grace_s=AN_HOUR).artifacts == told.artifacts
    assert [path.exists() for path in (orphan, draft, young, result)] == [False, False, True, True]


def test_features_of_a_space_go_with_the_record_of_where_they_lay(plan_of, finish, workspace):
    finish(plan_of("first"))
    shard = write(workspace, "features/space", "shard")
    make_old(workspace.artifacts)
    rows = pl.DataFrame({"sample_id": ["b"], "shard": ["shard"], "row_in_shard": [0]})
    with open_catalog(workspace.catalog) as con:
        record_feature_rows(con, "space", rows)
        record_feature_rows(con, "other", rows)
    assert collect_garbage(workspace, keep_runs=1, grace_s=AN_HOUR).artifacts == {"features": 1}
    assert not shard.exists()
    with open_catalog(workspace.catalog, read_only=True) as con:
        assert con.execute("SELECT feature_space FROM feature_rows").fetchall() == [("other",)]


def test_the_spaces_of_a_kept_selection_and_those_that_go_with_them_are_needed(plan_of, finish):
    trail = finish(plan_of("first"))
    model = ModelRef(settings=trail.config.model, digest="m", n_parameters=1, n_lora_parameters=1)
    training = ArtifactRef(stage="training", fingerprint="warm", path="/nowhere")
    none: ProjectionName = "none"
    space = FeatureSpace(
        model=model,
        checkpoint=CheckpointRef(training=training, index=1),
        kind="adam",
        projection=none,
        projection_dim=8,
        seed=0,
    )
    target = trail.targets[0]
    period = target.chosen.periods[0]
    spec = period.spec.model_copy(update={"spaces": (space,)})
    chosen = target.chosen.model_copy(update={"periods": (period.model_copy(update={"spec": spec}),)})
    changed = target.model_copy(update={"subjects": (chosen,)})
    needed = needed_places([trail.model_copy(update={"targets": (changed,)})])
    assert ("features", stage_key(space)) in needed
    assert ("features", stage_key(plain_space(space))) in needed
    assert ("training", "warm") in needed


def test_to_keep_no_run_is_refused(workspace):
    with pytest.raises(ValueError, match="keep_runs=0 must be at least 1"):
        collect_garbage(workspace, keep_runs=0, grace_s=0.0)


@pytest.fixture
def mirrored(workspace, tmp_path):
    return workspace.model_copy(update={"storage_root": f"file://{tmp_path}/store"})


def objects(tmp_path: Path) -> set[str]:
    store = tmp_path / "store"
    return {"/".join(path.relative_to(store).parts[:-1]) for path in store.rglob("*") if path.is_file()}


def write_old(workspace: Workspace, stage: str, key: str, hours: float = 2.0) -> Path:
    past = time.time() - hours * AN_HOUR
    with new_artifact(workspace.artifacts, stage, key, {}) as folder:
        (folder / "content").write_bytes(b"x" * 1000)
    folder = workspace.artifacts / stage / key
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (past, past))
    renew(workspace, stage, key)
    return folder


def renew(workspace: Workspace, stage: str, key: str) -> None:
    store = store_of(workspace.artifacts)
    remove_artifact(store, f"{stage}/{key}")
    put_artifact(store, f"{stage}/{key}", workspace.artifacts / stage / key)


def test_what_is_removed_is_removed_from_the_object_store_too(plan_of, finish, mirrored, tmp_path):
    trail = finish(plan_of("first"))
    candidates = trail.targets[0].candidates
    folders = [
        write_old(mirrored, "training", "both"),
        write_old(mirrored, "training", "stored"),
        write_old(mirrored, "features/space", "shard"),
        write_old(mirrored, candidates.stage, candidates.fingerprint),
        write_old(mirrored, "comparisons", "result"),
    ]
    both, stored = (1000 + (folder / MANIFEST).stat().st_size for folder in folders[:2])
    shutil.rmtree(folders[1])  # another machine wrote it
    write_old(mirrored, "training", "young", hours=0.0)
    told = collect_garbage(mirrored, keep_runs=1, grace_s=AN_HOUR, dry_run=True)
    assert told.artifacts == {"training": 2, "features": 1}
    assert told.bytes["training"] == 2 * both + stored
    assert len(objects(tmp_path)) == 6
    assert collect_garbage(mirrored, keep_runs=1, grace_s=AN_HOUR).artifacts == told.artifacts
    assert objects(tmp_path) == {"training/young", "candidates/c", "comparisons/result"}
    assert [folder.exists() for folder in folders] == [False, False, False, True, True]
    assert collect_garbage(mirrored, keep_runs=1, grace_s=AN_HOUR).artifacts == {}


def test_uploads_that_were_never_finished_go_once_they_are_old(plan_of, finish, mirrored, tmp_path):
    finish(plan_of("first"))
    write_old(mirrored, "training", "killed")
    shutil.rmtree(mirrored.artifacts / "training" / "killed")
    (tmp_path / "store" / "training" / "killed" / "index.json").unlink()
    assert collect_garbage(mirrored, keep_runs=1, grace_s=AN_HOUR).artifacts == {}
    make_old(tmp_path / "store")
    assert collect_garbage(mirrored, keep_runs=1, grace_s=AN_HOUR).artifacts == {"training": 1}
    assert objects(tmp_path) == set()


def test_nothing_is_removed_while_a_kept_run_has_a_damaged_trail(plan_of, finish, damage):
    finish(plan_of("first"))
    workspace = plan_of("first").workspace
    damage["flipped"](workspace.artifacts / "trails" / "first" / "trail.json")
    with pytest.raises(StaleArtifact, match="the newest runs cannot be told"):
        collect_garbage(workspace, keep_runs=1, grace_s=0.0)
    assert (workspace.artifacts / "draws" / "first").is_dir()
    finish(plan_of("second"))
    assert collect_garbage(workspace, keep_runs=1, grace_s=0.0).kept_runs == ("second",)
