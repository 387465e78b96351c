import importlib
import sys
from pathlib import Path

import pytest

from clusterucb_core.errors import InvalidConfig, StorageUnavailable
from clusterucb_core.object_store.access import READS, open_store, probe, reading, store_of, writing
from clusterucb_core.object_store.addresses import mirror_folder

registry = importlib.import_module("fsspec.registry")  # fsspec itself names its mapping so


def content_of(store):
    try:
        return sorted(store.files.find(store.root))
    except FileNotFoundError:
        return []


@pytest.mark.parametrize(("address", "package"), [("s3://bucket", "s3fs"), ("gs://bucket", "gcsfs")])
def test_a_protocol_whose_package_is_not_installed_names_it(address, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    protocol = address.split(":")[0]
    others = {name: kind for name, kind in registry._registry.items() if name != protocol}
    monkeypatch.setattr(registry, "_registry", others)  # what fsspec imported before
    with pytest.raises(InvalidConfig, match=rf"{address} needs a package.*pip install {package}"):
        open_store(address)


def test_only_a_mirror_has_a_store(tmp_path):
    assert store_of(tmp_path) is None
    mirror = mirror_folder(tmp_path, f"file://{tmp_path}/store")
    found = store_of(mirror)
    assert found is not None
    assert (found.address, found.root) == (f"file://{tmp_path}/store", f"{tmp_path}/store")


def test_a_probe_leaves_nothing_in_a_store_that_can_be_used(store, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    probe(store)
    assert content_of(store) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_probe_names_what_cannot_be_written(failing):
    with pytest.raises(
        StorageUnavailable, match=r"a probe could not be written \(OSError: no room\); see that"
    ):
        probe(failing("pipe_file", OSError("no room"), 1))


def test_a_store_that_gives_back_something_else_is_refused(store, monkeypatch):
    monkeypatch.setattr(store.files, "cat_file", lambda _: b"another", raising=True)
    with pytest.raises(StorageUnavailable, match="gives back b'another' where b'clusterucb' was put"):
        probe(store)
    assert content_of(store) == []


def test_a_read_is_tried_again_and_a_write_is_not(store, failing):
    store.files.pipe_file(f"{store.root}/a", b"content")
    flaky = failing("cat_file", ConnectionError("reset"), READS - 1)
    assert reading(flaky, "a", lambda: flaky.files.cat_file(f"{store.root}/a")) == b"content"
    broken = failing("pipe_file", ConnectionError("reset"), 1)
    with pytest.raises(StorageUnavailable, match=r"b could not be written \(ConnectionError: reset\)"):
        writing(broken, "b", lambda: broken.files.pipe_file(f"{store.root}/b", b""))
    assert content_of(store) == [f"{store.root}/a"]


def test_a_read_that_keeps_failing_ends_in_a_sentence(failing):
    broken = failing("cat_file", ConnectionError("reset"), READS)
    with pytest.raises(StorageUnavailable, match=r"a could not be read .*reset.*credentials"):
        reading(broken, "a", lambda: broken.files.cat_file("a"))
    assert broken.files.left == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [(PermissionError("403"), StorageUnavailable), (FileNotFoundError(), FileNotFoundError)],
)
def test_what_will_not_pass_is_tried_once(failing, error, expected):
    broken = failing("cat_file", error, READS)
    with pytest.raises(expected):
        reading(broken, "a", lambda: broken.files.cat_file("a"))
    assert broken.files.left == READS - 1


def test_a_store_knows_whether_it_is_a_folder(tmp_path):
    assert open_store(f"file://{tmp_path}").is_folder
    assert not open_store("memory://anything").is_folder
    assert Path(open_store(f"file://{tmp_path}/").root) == tmp_path
