"""A task's record is replayed only as long as the artifact that it names is there."""

import shutil

import prefect.settings as prefect_settings
import pytest

from clusterucb_core.artifacts import artifact_folder, new_artifact
from clusterucb_core.lm.settings import ModelSettings
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.features import ShardJob, open_store
from clusterucb_core.stages.models import FeatureSpace, ModelRef
from clusterucb_core.workspace import StageSpec, Workspace, stage_key
from tasks.caching import artifact_key, shard_key


class Spec(StageSpec):
    stage: str = "example"
    version: int = 1
    value: int


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    with prefect_settings.temporary_settings({prefect_settings.PREFECT_LOCAL_STORAGE_PATH: folder}):
        yield folder


@pytest.fixture
def shard_job():
    model = ModelRef(settings=ModelSettings(base="m"), digest="m", n_parameters=1, n_lora_parameters=1)
    space = FeatureSpace(
        model=model, checkpoint=None, kind="states", projection="none", projection_dim=0, seed=0
    )
    tokens = ArtifactRef(stage="tokens", fingerprint="t", path="/nowhere/tokens/t")
    return ShardJob(
        space=space, tokens=tokens, run_id="run", fingerprint="shard", sample_ids=("a",), batches=((0,),)
    )


def key_of(spec, workspace):
    return artifact_key(None, {"spec": spec, "workspace": workspace})


def write(spec, workspace):
    with new_artifact(workspace.artifacts, spec.stage, stage_key(spec), {}):
        pass
    return artifact_folder(workspace.artifacts, spec.stage, stage_key(spec))


def test_the_record_of_a_missing_artifact_is_dropped_under_the_same_key(tmp_path, records):
    spec, workspace = Spec(value=1), Workspace(home=str(tmp_path / "home"))
    folder = write(spec, workspace)
    key = key_of(spec, workspace)
    (records / key).write_text("a result", encoding="utf-8")
    assert key_of(spec, workspace) == key
    assert (records / key).exists()
    folder.rename(folder.with_name("gone"))
    assert key_of(spec, workspace) == key
    assert not (records / key).exists()


@pytest.mark.parametrize("way", ["flipped", "truncated", "extended"])
def test_the_record_of_a_damaged_artifact_is_dropped_and_the_artifact_removed(tmp_path, records, damage, way):
    spec, workspace = Spec(value=1), Workspace(home=str(tmp_path / "home"))
    folder = write(spec, workspace)
    key = key_of(spec, workspace)
    (records / key).write_text("a result", encoding="utf-8")
    damage[way](folder / "manifest.json")
    assert key_of(spec, workspace) == key
    assert not (records / key).exists()
    assert not folder.exists()


def test_the_record_of_a_damaged_shard_is_dropped_once_its_samples_are_asked_for(
    tmp_path, records, shard_job, damage
):
    workspace = Workspace(home=str(tmp_path / "home"))
    stage = f"features/{stage_key(shard_job.space)}"
    with new_artifact(workspace.artifacts, stage, shard_job.fingerprint, {}) as folder:
        (folder / "features.npy").write_bytes(b"features")
    parameters = {"job": shard_job, "workspace": workspace}
    key = shard_key(None, parameters)
    (records / key).write_text("a result", encoding="utf-8")
    damage["flipped"](workspace.artifacts / stage / shard_job.fingerprint / "features.npy")
    assert open_store(shard_job.space, workspace).known == set()
    assert shard_key(None, parameters) == key
    assert not (records / key).exists()


def test_the_key_tells_specs_and_homes_apart(tmp_path, records):
    workspace = Workspace(home=str(tmp_path / "home"))
    keys = {
        key_of(Spec(value=1), workspace),
        key_of(Spec(value=2), workspace),
        key_of(Spec(value=1), Workspace(home=str(tmp_path / "other"))),
    }
    assert len(keys) == 3


def test_the_record_of_what_an_object_store_still_has_stays_and_the_artifact_is_fetched(tmp_path, records):
    spec, workspace = (
        Spec(value=1),
        Workspace(home=str(tmp_path / "home"), storage_root=f"file://{tmp_path}/store"),
    )
    folder = write(spec, workspace)
    key = key_of(spec, workspace)
    (records / key).write_text("a result", encoding="utf-8")
    shutil.rmtree(folder)
    assert key_of(spec, workspace) == key
    assert folder.is_dir()
    assert (records / key).exists()
    shutil.rmtree(folder)
    (tmp_path / "store").rename(tmp_path / "gone")
    assert key_of(spec, workspace) == key
    assert not (records / key).exists()


def test_a_shard_is_not_fetched_for_its_record(tmp_path, records, shard_job):
    workspace = Workspace(home=str(tmp_path / "home"), storage_root=f"file://{tmp_path}/store")
    stage = f"features/{stage_key(shard_job.space)}"
    with new_artifact(workspace.artifacts, stage, shard_job.fingerprint, {}):
        pass
    parameters = {"job": shard_job, "workspace": workspace}
    key = shard_key(None, parameters)
    (records / key).write_text("a result", encoding="utf-8")
    shutil.rmtree(workspace.artifacts)
    assert shard_key(None, parameters) == key
    assert (records / key).exists()
    assert not workspace.artifacts.exists()
    shutil.rmtree(tmp_path / "store")
    assert shard_key(None, parameters) == key
    assert not (records / key).exists()
