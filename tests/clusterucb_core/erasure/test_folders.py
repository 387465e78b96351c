import pytest

from clusterucb_core.erasure import folders
from clusterucb_core.erasure.folders import replace_file, replace_folder, sweep


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "stage" / "key"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "text").write_text("old")
    return folder


def fill(draft):
    (draft / "manifest.json").write_text("{}")
    (draft / "text").write_text("new")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_and_a_folder_are_replaced_and_nothing_is_left_beside_them(artifact):
    replace_file(artifact / "text", lambda draft: draft.write_text("newer"))
    assert ((artifact / "text").read_text(), names(artifact)) == ("newer", ["manifest.json", "text"])
    replace_folder(artifact, fill)
    assert ((artifact / "text").read_text(), names(artifact.parent)) == ("new", ["key"])


def test_a_replacement_that_fails_keeps_the_old_folder_and_the_next_sweep_removes_the_rest(artifact):
    def fail(draft):
        (draft / "text").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(artifact, fail)
    assert (artifact / "text").read_text() == "old"
    assert sweep(artifact.parent) == 1
    assert names(artifact.parent) == ["key"]


@pytest.mark.parametrize("old_is_there", [True, False])
def test_a_complete_folder_that_lacks_its_name_gets_it_by_the_next_sweep(artifact, old_is_there, monkeypatch):
    def kill(written):
        if not old_is_there:
            folders.shutil.rmtree(artifact)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_put_in_place", kill)
        with pytest.raises(KeyboardInterrupt):
            replace_folder(artifact, fill)
    assert sweep(artifact.parent) == 0
    assert ((artifact / "text").read_text(), names(artifact.parent)) == ("new", ["key"])


def test_drafts_and_folders_without_a_manifest_are_removed(artifact):
    for name in (".key.12345678.tmp", "damaged"):
        (artifact.parent / name).mkdir()
        (artifact.parent / name / "samples.parquet").write_text("text")
    assert sweep(artifact.parent) == 2
    assert names(artifact.parent) == ["key"]
    assert sweep(artifact.parent / "absent") == 0
