from pathlib import Path

import numpy as np
import pytest

from clusterucb_core.artifacts import find_artifact, new_artifact, open_artifact
from clusterucb_core.erasure import feature_rows
from clusterucb_core.erasure.feature_rows import erase_from_clustering, erase_from_shard
from clusterucb_core.errors import StaleArtifact
from clusterucb_core.features.store import open_feature_store, read_shard
from clusterucb_core.seals import digest_file


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


KILLS = ["before the announcement", "before the rows", "between the rows", "before the last manifest"]


@pytest.fixture
def kill(monkeypatch):
    """Kill an erasure at a moment."""

    def at(moment, folder, sample_ids):
        real_write, real_load, writes = feature_rows.write_manifest, np.load, []

        def write(*arguments):
            writes.append(arguments)
            if moment == KILLS[0] or (moment == KILLS[3] and len(writes) == 2):
                raise OSError("killed")
            real_write(*arguments)

        def load(path, **keywords):
            if keywords["mmap_mode"] == "r+" and moment in KILLS[1:3]:
                if moment == KILLS[2]:
                    stored = real_load(path, mmap_mode="r+")
                    stored[0] = 0
                    stored.flush()
                raise OSError("killed")
            return real_load(path, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(feature_rows, "write_manifest", write)
            patch.setattr(feature_rows.np, "load", load)
            with pytest.raises(OSError, match="killed"):
                erase_from_shard(folder, sample_ids)

    return at


@pytest.mark.parametrize("moment", KILLS)
@pytest.mark.parametrize("then", ["ab", "b", "bc"])
def test_a_killed_erasure_is_made_good_by_the_next(shard, root, kill, moment, then):
    kill(moment, Path(shard.path), frozenset("ab"))
    assert erase_from_shard(Path(shard.path), frozenset(then))
    erased = set(then) | (set("ab") if moment != KILLS[0] else set())
    store = open_feature_store(root, "space")
    assert store.known == set("abc") - erased
    kept = sorted(store.known)
    np.testing.assert_array_equal(store.read(kept), np.eye(3, 5)[["abc".index(name) for name in kept]])
    stored = np.load(Path(shard.path) / "features.npy")
    assert stored.any(axis=1).tolist() == [name not in erased and name != "x" for name in "abcx"]
    assert "overwriting" not in (Path(shard.path) / "manifest.json").read_text()


@pytest.mark.parametrize("moment", KILLS[1:3])
def test_a_half_erased_shard_is_not_used_and_no_byte_of_it_stays(shard, root, kill, moment):
    kill(moment, Path(shard.path), frozenset("ab"))
    with pytest.raises(StaleArtifact, match=r"features.npy is damaged"):
        read_shard(shard)
    assert open_feature_store(root, "space").known == set()
    assert list(Path(shard.path).parent.iterdir()) == []


def test_damage_gets_no_digest_that_says_it_is_as_it_should_be(shard, damage):
    damage["flipped"](Path(shard.path) / "features.npy")
    with pytest.raises(StaleArtifact, match=r"features.npy is damaged"):
        erase_from_shard(Path(shard.path), frozenset("b"))


def test_the_digest_is_that_of_the_file_with_the_rows_gone(shard):
    path = Path(shard.path) / "features.npy"
    for rows in ([1], [0, 3], [0, 1, 2, 3]):
        whole = np.load(path)
        whole[rows] = 0
        np.save(path.with_name("other.npy"), whole)
        found = feature_rows._digest_after(path, np.array(rows))
        assert found == digest_file(path.with_name("other.npy"))


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
    assert open_artifact(find_artifact(root, "clustering", "key")) == path
