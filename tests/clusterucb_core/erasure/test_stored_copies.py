"""No text is left in an object store, whatever lies in the folder that mirrors it."""

import shutil
from pathlib import Path

import pytest

from clusterucb_core.artifacts import artifact_exists, find_artifact, new_artifact
from clusterucb_core.erasure import erase_samples, erasing
from clusterucb_core.erasure.stored_copies import current_mirror, fetch_stored, renew_stored
from clusterucb_core.lm.tokens import open_tokens
from clusterucb_core.store import open_catalog, record_artifact_root, record_pool, withdraw_samples
from clusterucb_core.workspace import Workspace

TEXT = "sample that is called a say"  # the words of a alone
OTHER = "sample that is called b say"


@pytest.fixture
def workspace(tmp_path):
    return Workspace(home=str(tmp_path / "home"), storage_root=f"file://{tmp_path}/objects")


@pytest.fixture
def root(workspace):
    """Where the fixtures of this folder write: what mirrors the store."""
    return workspace.artifacts


@pytest.fixture
def withdrawn(workspace, root, pool, tokens, shard, tmp_path):
    """A catalog that knows the store only by the root that was recorded; a is withdrawn."""
    with new_artifact(root, "training", "key", {"run_id": "run", "start": None}) as training:
        (training / "sample_ids.txt").write_text("a\nb")
    killed = tmp_path / "objects" / "ingest" / "killed"
    killed.mkdir()
    (killed / "0123-samples.parquet").write_text(f"an upload that was killed left {TEXT}")
    folder = Path(pool.path)
    with open_catalog(workspace.catalog) as con:
        record_pool(
            con,
            samples_parquet=folder / "samples.parquet",
            quarantine_parquet=folder / "quarantine.parquet",
            digest="d",
        )
        record_artifact_root(con, str(root))
        withdraw_samples(con, ["a"], reason="asked for")
    return Workspace(home=workspace.home)


def erase(workspace):
    return erase_samples(["a"], workspace, reason="asked for")


def assert_erased(tmp_path, find_text):
    assert find_text([TEXT], tmp_path) == {}
    assert len(find_text([OTHER], tmp_path / "objects")) == 1
    elsewhere = Workspace(
        home=str(tmp_path / "elsewhere"), storage_root=f"file://{tmp_path}/objects"
    ).artifacts
    found = find_artifact(elsewhere, "tokens", "key")
    assert open_tokens(found).sample_ids == ["b", "c"]


def test_the_text_is_in_the_store_before_and_nowhere_after(withdrawn, tmp_path, find_text):
    assert len(find_text([TEXT], tmp_path / "objects")) == 3  # pool, quarantine, the upload that was killed
    result = erase(withdrawn)
    assert_erased(tmp_path, find_text)
    # the pool, the tokens, the shard, and what was killed
    assert result.object_stores == {f"file://{tmp_path}/objects": 4}
    assert result.absent_roots == (f"{withdrawn.home}/artifacts",)
    assert [training.how for training in result.trainings] == ["sample"]
    assert erase(withdrawn).object_stores == {f"file://{tmp_path}/objects": 0}


def test_what_only_the_store_has_is_erased_too(withdrawn, root, tmp_path, find_text):
    shutil.rmtree(root)
    result = erase(withdrawn)
    assert_erased(tmp_path, find_text)
    assert len(result.trainings) == 1


@pytest.mark.parametrize("step", ["renew_stored", "erase_backups"])
def test_an_erasure_killed_before_or_after_the_store_is_finished_by_the_next(
    withdrawn, tmp_path, find_text, monkeypatch, step
):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(erasing, step, killed)
        with pytest.raises(KeyboardInterrupt):
            erase(withdrawn)
    erase(withdrawn)
    assert_erased(tmp_path, find_text)


def test_a_store_that_was_mirrored_by_a_folder_elsewhere_is_found(withdrawn, root, tmp_path, find_text):
    moved = tmp_path / "moved"
    Path(withdrawn.home).rename(moved)
    result = erase(Workspace(home=str(moved)))
    assert_erased(tmp_path, find_text)
    assert result.absent_roots == (f"{moved}/artifacts",)
    assert not Path(withdrawn.home).exists()


def test_the_mirror_of_a_state_folder_is_found_by_the_address(workspace, root, tmp_path):
    other = Workspace(home="/elsewhere", storage_root=workspace.storage_root).artifacts
    assert current_mirror(other, workspace.home) == root
    assert current_mirror(tmp_path, workspace.home) is None


def test_stages_are_fetched_and_renewed_with_all_features(workspace, root, tokens, shard, tmp_path):
    with new_artifact(root, "other", "key", {}):
        pass
    shutil.rmtree(root)
    fetch_stored(root, ("tokens",))
    held = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
    assert held == ["features/space", "tokens/key"]
    assert renew_stored(root, ("tokens",)) == 0
    shutil.rmtree(root / "tokens")
    assert renew_stored(root, ("tokens",)) == 1
    assert not artifact_exists(root, "tokens", "key")
    assert artifact_exists(root, "other", "key")
