from pathlib import Path

import numpy as np
import pytest

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.erasure.feature_rows import erase_from_clustering, erase_from_shard
from clusterucb_core.features.store import open_feature_store, read_shard


def test_the_features_are_overwritten_and_the_shard_does_not_know_the_sample(shard, root):
    assert erase_from_shard(Path(shard.path), frozenset("bx"))
    store = open_feature_store(root, "space")
    assert store.known == {"a", "c"}
    assert store.missing(["a", "b", "c", "x"]) == ["b", "x"]
    np.testing.assert_array_equal(store.read(["c", "a"]), np.eye(3, 5)[[2, 0]])
    stored = np.load(Path(shard.path) / "features.npy")
    assert not stored[[1, 3]].any()
    assert read_shard(shard).sample_ids == ("a", "c")
    assert "secret" not in (Path(shard.path) / "manifest.json").read_text()


def test_a_repeat_and_a_shard_of_other_samples_change_nothing(shard):
    erase_from_shard(Path(shard.path), frozenset("b"))
    assert not erase_from_shard(Path(shard.path), frozenset("bz"))
    assert read_shard(shard).sample_ids == ("a", "c")


def test_a_kill_between_the_rows_and_the_manifest_is_made_good(shard, root, monkeypatch):
    def fail(folder, manifest):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("clusterucb_core.erasure.feature_rows.write_manifest", fail)
        with pytest.raises(OSError, match="killed"):
            erase_from_shard(Path(shard.path), frozenset("b"))
    assert erase_from_shard(Path(shard.path), frozenset("b"))
    assert open_feature_store(root, "space").known == {"a", "c"}


def test_a_center_that_is_the_direction_of_erased_samples_only_is_overwritten(root):
    with new_artifact(root, "clustering", "key", {"k": 3}) as folder:
        np.save(folder / "labels.npy", np.array([0, 0, 1, 2], dtype=np.int32))
        np.save(folder / "centers.npy", np.ones((3, 4), dtype=np.float32))
        (folder / "sample_ids.txt").write_text("a\nb\nc\nd")
    path = root / "clustering" / "key"
    assert erase_from_clustering(path, frozenset("ac"))
    assert np.load(path / "centers.npy").any(axis=1).tolist() == [True, False, True]
    assert not erase_from_clustering(path, frozenset("ac"))
    assert not erase_from_clustering(path, frozenset("a"))
