import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clusterucb_core.artifacts import (
    MANIFEST,
    artifact_exists,
    artifact_file,
    artifact_folder,
    artifact_keys,
    discard_artifact,
    file_digest,
    find_artifact,
    fingerprint,
    new_artifact,
    open_artifact,
    read_manifest,
    still_there,
)
from clusterucb_core.errors import MissingArtifact, StaleArtifact, StorageUnavailable
from clusterucb_core.frozen import Frozen
from clusterucb_core.object_store import mirror_folder, store_of
from clusterucb_core.records import ArtifactRef


class Point(Frozen):
    x: int = 1


def test_a_fingerprint_is_32_digits_that_depend_on_every_value():
    assert len(fingerprint("a", 1)) == 32
    assert fingerprint("a", 1) == fingerprint("a", 1)
    assert len({fingerprint(*parts) for parts in [("a", 1), ("a", 2), ("a", "1"), (["a"], 1), ("a1",)]}) == 5


def test_the_order_of_keys_does_not_matter_but_that_of_lists_does():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_models_and_paths_have_a_stable_form():
    assert fingerprint(Point(x=3)) == fingerprint({"x": 3})
    assert fingerprint(Path("/a/b")) == fingerprint("/a/b")


def test_a_value_without_a_stable_form_is_refused():
    with pytest.raises(TypeError, match="set has no stable JSON form; convert it"):
        fingerprint({1, 2})


def test_a_file_is_named_by_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b").write_bytes(b"x" * 3_000_000)
    assert file_digest(tmp_path / "a") == file_digest(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"y")
    assert file_digest(tmp_path / "b") == "a1fce4363854ff888cff4b8e7875d600c2682390412a8cf79b37d0b11148b0fa"


def test_an_artifact_appears_with_its_manifest(tmp_path):
    manifest = {"n": 0}
    with new_artifact(tmp_path, "stage", "key", manifest) as folder:
        (folder / "data").write_text("content")
        manifest["n"] = 7
        assert find_artifact(tmp_path, "stage", "key") is None
    ref = find_artifact(tmp_path, "stage", "key")
    assert ref == ArtifactRef(stage="stage", fingerprint="key", path=str(tmp_path / "stage" / "key"))
    assert read_manifest(ref) == {"n": 7}
    assert Path(ref.path, "data").read_text() == "content"


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    written = []
    real = Path.replace

    def replace(draft, target):
        written.append(sorted(path.name for path in draft.iterdir()))
        return real(draft, target)

    monkeypatch.setattr(Path, "replace", replace)
    with new_artifact(tmp_path, "stage", "key", {}) as folder:
        (folder / "data").write_text("content")
        assert not (folder / MANIFEST).exists()
    assert written == [["data", MANIFEST]]


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), new_artifact(tmp_path, "stage", "key", {}) as folder:  # noqa: PT012
        (folder / "data").write_text("half")
        raise RuntimeError
    assert list((tmp_path / "stage").iterdir()) == []


def test_a_manifest_that_json_cannot_hold_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError), new_artifact(tmp_path, "stage", "key", {"bad": {1, 2}}):
        pass
    assert list((tmp_path / "stage").iterdir()) == []


def test_a_killed_writer_leaves_a_draft_that_is_ignored(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from clusterucb_core.artifacts import new_artifact\n"  # noqa: E501
        "with new_artifact(Path(sys.argv[1]), 'stage', 'key', {}) as folder:\n"
        "    (folder / 'data').write_text('half'); (folder / 'manifest.json').write_text('{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name.startswith(".key.") for path in (tmp_path / "stage").iterdir()] == [True]
    assert find_artifact(tmp_path, "stage", "key") is None
    with new_artifact(tmp_path, "stage", "key", {}) as folder:
        (folder / "data").write_text("whole")
    assert (tmp_path / "stage" / "key" / "data").read_text() == "whole"


def test_a_folder_without_a_manifest_is_replaced(tmp_path):
    final = artifact_folder(tmp_path, "stage", "key")
    final.mkdir(parents=True)
    (final / "old").write_text("half")
    with new_artifact(tmp_path, "stage", "key", {}) as folder:
        (folder / "new").write_text("whole")
    assert sorted(path.name for path in final.iterdir()) == [MANIFEST, "new"]


def test_the_first_of_two_writers_stays(tmp_path):
    with new_artifact(tmp_path, "stage", "key", {"by": "outer"}) as outer:
        (outer / "data").write_text("outer")
        with new_artifact(tmp_path, "stage", "key", {"by": "inner"}) as inner:
            (inner / "data").write_text("inner")
    assert (tmp_path / "stage" / "key" / "data").read_text() == "inner"
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["key"]


def test_an_artifact_that_appears_just_before_the_move_stays(tmp_path, monkeypatch):
    real = Path.replace

    def replace(draft, target):
        monkeypatch.setattr(Path, "replace", real)
        with new_artifact(tmp_path, "stage", "key", {"by": "faster"}) as folder:
            (folder / "data").write_text("faster")
        return real(draft, target)

    monkeypatch.setattr(Path, "replace", replace)
    with new_artifact(tmp_path, "stage", "key", {"by": "slower"}) as folder:
        (folder / "data").write_text("slower")
    assert (tmp_path / "stage" / "key" / "data").read_text() == "faster"
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["key"]


def test_a_move_that_fails_is_an_error(tmp_path, monkeypatch):
    def replace(draft, target):
        raise PermissionError(13, "not allowed")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(PermissionError), new_artifact(tmp_path, "stage", "key", {}):
        pass
    assert find_artifact(tmp_path, "stage", "key") is None


def write_from(root: Path, number: int, barrier: threading.Barrier) -> None:
    with new_artifact(root, "stage", "key", {"by": number}) as folder:
        for part in range(20):
            (folder / f"part-{part}").write_text(str(number))
        barrier.wait()


@pytest.mark.parametrize("attempt", range(5))
def test_threads_that_finish_at_once_leave_one_whole_artifact(tmp_path, attempt):
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        done = [threads.submit(write_from, tmp_path, number, barrier) for number in range(8)]
        assert [future.result() for future in done] == [None] * 8
    check_whole(tmp_path)


def test_processes_that_write_at_once_leave_one_whole_artifact(tmp_path):
    script = (
        "import sys; from pathlib import Path; from clusterucb_core.artifacts import new_artifact\n"
        "sys.stdin.read()\n"
        "with new_artifact(Path(sys.argv[1]), 'stage', 'key', {'by': int(sys.argv[2])}) as folder:\n"
        "    for part in range(20): (folder / f'part-{part}').write_text(sys.argv[2])\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(n)], stdin=subprocess.PIPE)
        for n in range(3)
    ]
    for writer in writers:
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    check_whole(tmp_path)


def check_whole(root: Path) -> None:
    assert [path.name for path in (root / "stage").iterdir()] == ["key"]
    ref = find_artifact(root, "stage", "key")
    by = {path.read_text() for path in Path(ref.path).glob("part-*")}
    assert by == {str(read_manifest(ref)["by"])}
    assert len(list(Path(ref.path).glob("part-*"))) == 20


def test_a_missing_manifest_names_the_stage(tmp_path):
    ref = ArtifactRef(stage="tokens", fingerprint="key", path=str(tmp_path / "tokens" / "key"))
    with pytest.raises(MissingArtifact, match="run the pipeline again to rebuild the stage 'tokens'"):
        read_manifest(ref)


def test_keys_of_any_kind_are_sealed_as_json_holds_them(tmp_path):
    with new_artifact(tmp_path, "stage", "key", {"by_size": {10: "b", 9: "a"}, "where": Path("/a")}):
        pass
    ref = find_artifact(tmp_path, "stage", "key")
    assert read_manifest(ref) == {"by_size": {"10": "b", "9": "a"}, "where": "/a"}


FILES = ["data", "checkpoint-1/weights", MANIFEST]


def write_two_files(root: Path, stage: str = "stage", key: str = "key") -> ArtifactRef:
    with new_artifact(root, stage, key, {"by": key}) as folder:
        (folder / "data").write_text(f"data of {key}")
        (folder / "checkpoint-1").mkdir()
        (folder / "checkpoint-1" / "weights").write_text(f"weights of {key}")
    return ArtifactRef(stage=stage, fingerprint=key, path=str(root / stage / key))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", ["flipped", "truncated", "extended", "deleted"])
def test_a_damaged_artifact_is_removed_with_a_warning_and_can_be_written_again(
    tmp_path, damage, caplog, name, way
):
    ref = write_two_files(tmp_path)
    damage[way](Path(ref.path) / name)
    assert find_artifact(tmp_path, "stage", "key") is None
    if (name, way) != (MANIFEST, "deleted"):  # what was never finished is nothing to speak of
        assert f"{ref.path}/{name}" in caplog.text
        assert "the artifact is removed, and computed again where it is needed" in caplog.text
        assert list((tmp_path / "stage").iterdir()) == []
    assert write_two_files(tmp_path) == find_artifact(tmp_path, "stage", "key")
    assert (Path(ref.path) / "data").read_text() == "data of key"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", ["flipped", "truncated", "extended"])
def test_a_damaged_artifact_that_somebody_wants_to_read_is_refused_and_stays(tmp_path, damage, name, way):
    ref = write_two_files(tmp_path)
    assert open_artifact(ref) == Path(ref.path)
    damage[way](Path(ref.path) / name)
    with pytest.raises(StaleArtifact, match=f"{name}.*; run the pipeline again, which computes the stage"):
        open_artifact(ref)
    with pytest.raises(StaleArtifact, match=name):
        still_there(ref)
    assert Path(ref.path).is_dir()


def test_an_artifact_is_opened_for_the_part_that_is_read(tmp_path, damage):
    ref = write_two_files(tmp_path)
    damage["flipped"](Path(ref.path) / "data")
    assert open_artifact(ref, "checkpoint-1") == Path(ref.path)
    assert artifact_file(ref, "checkpoint-1/weights").read_text() == "weights of key"
    with pytest.raises(StaleArtifact, match="data is damaged"):
        artifact_file(ref, "data")
    with pytest.raises(StaleArtifact, match="stage/key was written without results"):
        artifact_file(ref, "results")


@pytest.mark.parametrize("there", [("stage", "other"), ("stages", "key"), ("stage/key", "key")])
def test_an_artifact_under_the_name_of_another_is_found_out(tmp_path, caplog, there):
    stage, key = there
    ref = write_two_files(tmp_path / "from")
    final = artifact_folder(tmp_path, stage, key)
    shutil.copytree(ref.path, final)
    with pytest.raises(StaleArtifact, match=f"lies where {stage}/{key} belongs, but holds stage/key"):
        open_artifact(ArtifactRef(stage=stage, fingerprint=key, path=str(final)))
    assert find_artifact(tmp_path, stage, key) is None
    assert f"{final} lies where {stage}/{key} belongs, but holds stage/key" in caplog.text
    assert not final.exists()


@pytest.mark.parametrize("name", FILES)
def test_files_that_two_artifacts_have_swapped_are_found(tmp_path, name):
    one, two = (write_two_files(tmp_path, key=key) for key in ("one", "two"))
    first, second = (Path(ref.path) / name for ref in (one, two))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    for ref in (one, two):
        with pytest.raises(StaleArtifact):
            open_artifact(ref)


def test_damage_that_cannot_be_removed_is_an_error(tmp_path, damage, monkeypatch):
    ref = write_two_files(tmp_path)
    damage["flipped"](Path(ref.path) / "data")

    def rename(path, target):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(StaleArtifact, match=r"data is damaged.*cannot be removed .*Read-only file system"):
        find_artifact(tmp_path, "stage", "key")
    assert Path(ref.path).is_dir()


def test_a_sound_artifact_that_takes_the_place_of_a_damaged_one_meanwhile_stays(
    tmp_path, damage, monkeypatch
):
    ref = write_two_files(tmp_path)
    damage["flipped"](Path(ref.path) / "data")
    real = Path.rename

    def rename(path, target):
        monkeypatch.setattr(Path, "rename", real)
        discard_artifact(tmp_path, "stage", "key")
        write_two_files(tmp_path)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert find_artifact(tmp_path, "stage", "key") == ref
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["key"]


def test_a_damaged_artifact_in_the_place_of_a_new_one_is_replaced(tmp_path, damage):
    ref = write_two_files(tmp_path)
    with new_artifact(tmp_path, "stage", "key", {"by": "later"}) as folder:
        (folder / "data").write_text("later")
        damage["truncated"](Path(ref.path) / "data")
    assert (Path(ref.path) / "data").read_text() == "later"
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["key"]


@pytest.fixture
def mirrors(tmp_path):
    """Return the folder of a machine that mirrors one store which all of them have in common."""
    return lambda name="here": mirror_folder(tmp_path / name, f"file://{tmp_path}/store")


def write(root: Path, content: str = "content", key: str = "key") -> ArtifactRef:
    with new_artifact(root, "stage", key, {"by": content}) as folder:
        (folder / "data").write_text(content)
    return ArtifactRef(stage="stage", fingerprint=key, path=str(root / "stage" / key))


def test_what_one_machine_wrote_another_finds_and_fetches_once(mirrors, tmp_path):
    here, there = mirrors("here"), mirrors("there")
    assert find_artifact(there, "stage", "key") is None
    written = write(here)
    found = find_artifact(there, "stage", "key")
    assert found == ArtifactRef(stage="stage", fingerprint="key", path=str(there / "stage" / "key"))
    assert Path(found.path, "data").read_text() == "content"
    assert read_manifest(found) == read_manifest(written) == {"by": "content"}
    assert [path.name for path in (there / "stage").iterdir()] == ["key"]
    (tmp_path / "store").rename(tmp_path / "gone")
    assert find_artifact(there, "stage", "key") == found


def test_whether_an_artifact_exists_is_told_without_fetching_it(mirrors):
    write(mirrors("here"))
    assert artifact_exists(mirrors("here"), "stage", "key")
    assert artifact_exists(mirrors("there"), "stage", "key")
    assert not artifact_exists(mirrors("there"), "stage", "other")
    assert not mirrors("there").exists()


def test_the_keys_of_a_stage_are_those_of_the_folder_and_of_the_store(mirrors):
    write(mirrors("here"), key="a")
    write(mirrors("there"), key="b")
    (mirrors("here") / "stage" / ".killed.tmp").mkdir()
    assert artifact_keys(mirrors("here"), "stage") == ["a", "b"]
    assert artifact_keys(mirrors("elsewhere"), "stage") == ["a", "b"]
    assert artifact_keys(mirrors("here"), "nothing") == []


def test_an_artifact_that_the_store_does_not_take_gets_no_name(mirrors, tmp_path):
    (tmp_path / "store").write_text("no folder")
    with pytest.raises(StorageUnavailable, match=f"file://{tmp_path}/store: stage/key"):
        write(mirrors())
    assert list((mirrors() / "stage").iterdir()) == []


def test_a_writer_killed_before_the_index_left_an_artifact_that_is_not_there(mirrors, tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from clusterucb_core.artifacts import new_artifact\n"
        "from clusterucb_core.object_store import copies\n"
        "put = copies._put\n"
        "def last(store, path, write):\n"
        "    if path.endswith('index.json'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    put(store, path, write)\n"
        "copies._put = last\n"
        "with new_artifact(Path(sys.argv[1]), 'stage', 'key', {'by': 'killed'}) as folder:\n"
        "    (folder / 'data').write_text('killed')\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(mirrors())], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "store" / "stage" / "key").iterdir())) == 2
    for name in ("here", "there"):
        assert find_artifact(mirrors(name), "stage", "key") is None
        assert not artifact_exists(mirrors(name), "stage", "key")
    write(mirrors(), "whole")
    assert Path(find_artifact(mirrors("there"), "stage", "key").path, "data").read_text() == "whole"


def test_processes_that_store_at_once_leave_one_whole_artifact(mirrors):
    script = (
        "import sys; from pathlib import Path; from clusterucb_core.artifacts import new_artifact\n"
        "sys.stdin.read()\n"
        "with new_artifact(Path(sys.argv[1]), 'stage', 'key', {'by': int(sys.argv[2])}) as folder:\n"
        "    for part in range(20): (folder / f'part-{part}').write_text(sys.argv[2])\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(mirrors(f"{n}")), str(n)], stdin=subprocess.PIPE)
        for n in range(3)
    ]
    for writer in writers:
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert find_artifact(mirrors("there"), "stage", "key") is not None
    check_whole(mirrors("there"))


def test_threads_that_fetch_at_once_leave_one_whole_artifact(mirrors):
    with new_artifact(mirrors("here"), "stage", "key", {"by": 7}) as folder:
        for part in range(20):
            (folder / f"part-{part}").write_text("7")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: find_artifact(mirrors("there"), "stage", "key"), range(4)))
    assert len({ref.path for ref in found}) == 1
    check_whole(mirrors("there"))


def test_what_is_gone_here_is_fetched_again_while_the_store_has_it(mirrors):
    ref = write(mirrors())
    shutil.rmtree(ref.path)
    assert still_there(ref)
    assert Path(ref.path, "data").read_text() == "content"
    discard_artifact(mirrors(), "stage", "key")
    assert not still_there(ref)


@pytest.mark.parametrize("look", ["find", "still there"])
def test_a_copy_that_is_damaged_here_is_fetched_again(mirrors, damage, look):
    ref = write(mirrors())
    damage["flipped"](Path(ref.path) / "data")
    found = still_there(ref) if look == "still there" else find_artifact(mirrors(), "stage", "key") == ref
    assert found
    assert Path(ref.path, "data").read_text() == "content"


def test_what_the_store_holds_under_the_name_of_another_is_removed_and_not_used(mirrors, tmp_path, caplog):
    write(mirrors("here"), key="one")
    shutil.copytree(tmp_path / "store" / "stage" / "one", tmp_path / "store" / "stage" / "two")
    assert find_artifact(mirrors("there"), "stage", "two") is None
    assert "lies where stage/two belongs, but holds stage/one; it is removed from file://" in caplog.text
    assert not artifact_exists(mirrors("elsewhere"), "stage", "two")
    write(mirrors("there"), "new", key="two")
    assert Path(find_artifact(mirrors("elsewhere"), "stage", "two").path, "data").read_text() == "new"


def test_discarding_takes_an_artifact_from_the_folder_and_from_the_store(mirrors, tmp_path):
    write(mirrors())
    discard_artifact(mirrors(), "stage", "key")
    assert not artifact_exists(mirrors(), "stage", "key")
    assert list((tmp_path / "store").rglob("*.*")) == []
    write(tmp_path / "plain")
    discard_artifact(tmp_path / "plain", "stage", "key")
    assert not (tmp_path / "plain" / "stage" / "key").exists()
    discard_artifact(tmp_path / "plain", "stage", "key")


def test_a_feature_space_is_two_levels_below_its_root(mirrors):
    with new_artifact(mirrors(), "features/space", "shard", {}):
        pass
    path = mirrors() / "features" / "space" / "shard"
    shutil.rmtree(path)
    assert still_there(ArtifactRef(stage="features/space", fingerprint="shard", path=str(path)))


def test_a_folder_that_mirrors_nothing_asks_no_store(tmp_path):
    assert store_of(tmp_path) is None
    assert not artifact_exists(tmp_path, "stage", "key")
    assert not still_there(
        ArtifactRef(stage="stage", fingerprint="key", path=str(tmp_path / "stage" / "key"))
    )
