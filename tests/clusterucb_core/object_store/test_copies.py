import json
import os
import time
from pathlib import Path

import pytest

from clusterucb_core.errors import StaleArtifact, StorageUnavailable
from clusterucb_core.object_store.access import READS
from clusterucb_core.object_store.copies import (
    INDEX,
    get_artifact,
    has_artifact,
    list_below,
    put_artifact,
    remove_artifact,
    renew_artifact,
    stored_size,
)

PLACE = "stage/key"


@pytest.fixture
def folder(tmp_path):
    return filled(tmp_path / "content")


def filled(folder: Path, **files: bytes) -> Path:
    for name, content in {"a.bin": b"a" * 100, "sub/b.bin": b"b", "manifest.json": b"{}", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def fetched(store, tmp_path, name="fetched") -> dict[str, bytes] | None:
    (tmp_path / name).mkdir()
    return read(tmp_path / name) if get_artifact(store, PLACE, tmp_path / name) else None


def objects(store) -> list[str]:
    return [path.removeprefix(f"{store.root}/{PLACE}/") for path in store.files.find(f"{store.root}/{PLACE}")]


def object_of(store, name) -> str:
    return next(f"{store.root}/{PLACE}/{path}" for path in objects(store) if path.endswith(f"-{name}"))


def test_what_is_put_is_what_is_fetched_and_as_old(store, folder, tmp_path):
    past = time.time() - 1000
    for path in folder.rglob("*"):
        os.utime(path, (past, past))
    assert not has_artifact(store, PLACE)
    assert fetched(store, tmp_path, "before") is None
    put_artifact(store, PLACE, folder)
    assert has_artifact(store, PLACE)
    assert fetched(store, tmp_path) == read(folder)
    assert (tmp_path / "fetched" / "manifest.json").stat().st_mtime == pytest.approx(past, abs=1e-3)


def test_the_index_is_written_last(store, folder, failing):
    with pytest.raises(StorageUnavailable, match="could not be written"):
        put_artifact(failing("pipe_file", OSError("gone"), 1), PLACE, folder)
    assert len(objects(store)) == 3
    assert not has_artifact(store, PLACE)


def test_an_upload_that_was_broken_off_goes_on_with_what_is_missing(store, folder, failing, tmp_path):
    with pytest.raises(StorageUnavailable):
        put_artifact(failing("pipe_file", OSError("gone"), 1), PLACE, folder)
    no_uploads = failing("put_file", AssertionError("sent twice"), READS)
    put_artifact(no_uploads, PLACE, folder)
    assert fetched(store, tmp_path) == read(folder)


def test_what_is_there_is_not_replaced(store, folder, tmp_path):
    put_artifact(store, PLACE, folder)
    put_artifact(store, PLACE, filled(tmp_path / "other", **{"a.bin": b"other"}))
    assert fetched(store, tmp_path) == read(folder)


def test_an_artifact_that_lost_an_object_is_written_again(store, folder, tmp_path):
    put_artifact(store, PLACE, folder)
    store.files.rm_file(object_of(store, "a.bin"))
    put_artifact(store, PLACE, folder)
    assert fetched(store, tmp_path) == read(folder)


@pytest.mark.parametrize("damage", [b"a" * 50, b"x" * 100])
def test_a_damaged_object_is_fetched_again_and_then_refused(store, folder, tmp_path, damage, caplog):
    put_artifact(store, PLACE, folder)
    store.files.pipe_file(object_of(store, "a.bin"), damage)
    with pytest.raises(
        StaleArtifact, match=rf"stage/key/a.bin in .* is {len(damage)} bytes .* instead of 100 "
    ):
        fetched(store, tmp_path)
    assert caplog.text.count("fetching it again") == READS


def test_an_object_that_came_truncated_once_is_fetched_again(store, folder, tmp_path, failing):
    put_artifact(store, PLACE, folder)
    flaky = failing("nothing", None, 0)
    whole, calls = store.files.get_file, []

    def cut(path, target):
        whole(path, target)
        calls.append(path)
        if len(calls) == 1:
            Path(target).write_bytes(Path(target).read_bytes()[:-1])

    flaky.files.get_file = cut
    assert fetched(flaky, tmp_path) == read(folder)
    assert len(calls) == 4


def test_an_absent_object_is_refused(store, folder, tmp_path):
    put_artifact(store, PLACE, folder)
    store.files.rm_file(object_of(store, "b.bin"))
    with pytest.raises(StaleArtifact, match=r"stage/key/sub/b.bin in .* is absent instead of 1 bytes"):
        fetched(store, tmp_path)


def test_an_index_that_cannot_be_read_counts_as_none(store, folder, tmp_path, caplog):
    put_artifact(store, PLACE, folder)
    store.files.pipe_file(f"{store.root}/{PLACE}/{INDEX}", b'{"files": {')
    assert not has_artifact(store, PLACE)
    assert "counts as absent" in caplog.text
    put_artifact(store, PLACE, folder)
    assert fetched(store, tmp_path) == read(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.bin", "sub/../../outside.bin", "/tmp/outside.bin", "", ".", "..", "sub/", "a\0.bin",
        "a\n.bin", "..\\outside.bin", "C:outside.bin", "x" * 300, "x/" * 3000 + "x\x1b[2J",
    ],
)  # fmt: skip
def test_no_index_makes_a_file_outside_of_its_artifact(store, folder, tmp_path, name):
    put_artifact(store, PLACE, folder)
    path = f"{store.root}/{PLACE}/{INDEX}"
    index = json.loads(store.files.cat_file(path))
    index["files"][name] = index["files"].pop("a.bin")
    store.files.pipe_file(path, json.dumps(index).encode())
    before = set(tmp_path.rglob("*"))
    with pytest.raises(StaleArtifact, match=r"which lies outside or is no path of a file"):
        fetched(store, tmp_path)
    made = [path for path in tmp_path.rglob("*") if path not in before]
    assert [path for path in made if not path.is_relative_to(tmp_path / "fetched")] == []
    assert not Path("/tmp/outside.bin").exists()


def test_renewing_leaves_nothing_but_what_the_folder_holds(store, folder, tmp_path):
    put_artifact(store, PLACE, folder)
    assert not renew_artifact(store, PLACE, folder)
    (folder / "a.bin").write_bytes(b"rewritten")
    assert renew_artifact(store, PLACE, folder)
    assert fetched(store, tmp_path) == read(folder)
    held = [store.files.cat_file(f"{store.root}/{PLACE}/{path}") for path in objects(store)]
    assert len(held) == 4
    assert b"a" * 100 not in held


def test_renewing_that_was_killed_before_it_removed_the_old_objects_removes_them(store, folder, failing):
    put_artifact(store, PLACE, folder)
    (folder / "a.bin").write_bytes(b"rewritten")
    with pytest.raises(StorageUnavailable):
        renew_artifact(failing("rm", OSError("gone"), 1), PLACE, folder)
    assert len(objects(store)) == 5
    assert renew_artifact(store, PLACE, folder)
    assert len(objects(store)) == 4


def test_places_are_listed_level_by_level(store, folder):
    assert list_below(store) == list_below(store, "stage") == []
    put_artifact(store, "stage/b", folder)
    put_artifact(store, "stage/a", folder)
    put_artifact(store, "features/space/shard", folder)
    assert list_below(store) == ["features", "stage"]
    assert list_below(store, "stage") == ["a", "b"]
    assert list_below(store, "features/space") == ["shard"]


def test_sizes_and_ages_are_those_of_the_files(store, folder):
    past = time.time() - 1000
    for path in folder.rglob("*"):
        os.utime(path, (past, past))
    put_artifact(store, PLACE, folder)
    found = stored_size(store, PLACE)
    assert (found.bytes, found.written_at) == (103, pytest.approx(past, abs=1e-3))


def test_what_was_never_finished_is_as_old_as_its_objects(store, folder):
    began = time.time()
    put_artifact(store, PLACE, folder)
    store.files.rm_file(f"{store.root}/{PLACE}/{INDEX}")
    found = stored_size(store, PLACE)
    assert found.bytes == 103
    assert began - 2 <= found.written_at <= time.time() + 2


def test_what_is_not_there_has_no_size(store):
    assert stored_size(store, PLACE) is None


def test_removing_takes_the_index_first_and_leaves_nothing(store, folder, failing):
    put_artifact(store, PLACE, folder)
    put_artifact(store, "stage/other", folder)
    whole, removed = store.files.rm, []

    def rm(path, recursive):
        removed.append(path.removeprefix(f"{store.root}/"))
        whole(path, recursive=recursive)

    watched = failing("nothing", None, 0)
    watched.files.rm = rm
    remove_artifact(watched, PLACE)
    assert removed == [f"{PLACE}/{INDEX}", PLACE]
    assert list_below(store, "stage") == ["other"]
    remove_artifact(store, PLACE)
    assert list_below(store, "stage") == ["other"]
