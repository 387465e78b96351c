"""A task's record is replayed only as long as the artifact that it names is there."""

import prefect.settings as prefect_settings
import pytest

from clusterucb_core.artifacts import artifact_folder, new_artifact
from clusterucb_core.workspace import StageSpec, Workspace, stage_key
from tasks.caching import artifact_key


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


def test_the_key_tells_specs_and_homes_apart(tmp_path, records):
    workspace = Workspace(home=str(tmp_path / "home"))
    keys = {
        key_of(Spec(value=1), workspace),
        key_of(Spec(value=2), workspace),
        key_of(Spec(value=1), Workspace(home=str(tmp_path / "other"))),
    }
    assert len(keys) == 3
