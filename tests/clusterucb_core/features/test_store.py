import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.errors import MissingArtifact, StaleArtifact
from clusterucb_core.features.shards import plan_shards, write_shard
from clusterucb_core.features.store import open_feature_store, read_shard
from clusterucb_core.object_store import mirror_folder
from clusterucb_core.records import ArtifactRef

ROWS = {
    f"s{i}": row / np.linalg.norm(row) for i, row in enumerate(np.random.default_rng(0).normal(size=(6, 5)))
}


def store_shard(root, key, ids, *, excluded=(), rows=ROWS, dim=5, space="space"):
    """Write a shard by hand: it must be readable from its description alone."""
    manifest = {"feature_space": space, "sample_ids": list(ids), "provenance": {}, "dim": dim}
    with new_artifact(root, f"features/{space}", key, manifest) as folder:
        content = np.zeros((len(ids), dim), dtype=np.float16)
        for row, sample_id in enumerate(ids):
            if sample_id not in excluded:
                content[row] = rows[sample_id][:dim]
        np.save(folder / "features.npy", content)
        manifest["excluded"] = [[sample_id, "zero_gradient", "detail"] for sample_id in excluded]
    return root / "features" / space / key


@pytest.fixture
def store(tmp_path):
    store_shard(tmp_path, "b", ["s3", "s1"])
    store_shard(tmp_path, "a", ["s0", "s2", "s4"], excluded=["s2"])
    return open_feature_store(tmp_path, "space")


def test_a_store_knows_what_is_there_what_failed_and_what_is_missing(store):
    assert store.known == {"s0", "s1", "s3", "s4"}
    assert store.excluded["s2"].reason == "zero_gradient"
    assert store.missing(["s9", "s0", "s2", "s8", "s1"]) == ["s9", "s8"]
    assert store.locations(["s4", "s3"]) == [("a", 2), ("b", 0)]


def test_rows_come_in_the_order_asked_at_unit_length(store):
    found = store.read(["s1", "s4", "s3", "s4", "s0"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [ROWS[i] for i in ("s1", "s4", "s3", "s4", "s0")], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_reading_nothing_gives_no_rows(store, tmp_path):
    assert store.read([]).shape == (0, 5)
    assert open_feature_store(tmp_path, "elsewhere").read([]).shape == (0, 0)


def test_blocks_join_to_the_whole(store):
    ids = ["s1", "s4", "s3", "s0", "s1"]
    blocks = list(store.iter_blocks(ids, rows=2))
    assert [len(block) for block in blocks] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), store.read(ids))


@pytest.mark.parametrize(("sample_id", "message"), [("s9", "compute what"), ("s2", "excluded")])
def test_a_sample_without_a_feature_is_an_error_that_names_it(store, sample_id, message):
    with pytest.raises(MissingArtifact, match=f"'{sample_id}'.*{message}"):
        store.read(["s0", sample_id])


def test_the_draft_of_a_killed_run_is_ignored(store, tmp_path):
    draft = tmp_path / "features" / "space" / ".c.1234.tmp"
    shutil.copytree(tmp_path / "features" / "space" / "a", draft)
    (tmp_path / "features" / "space" / "d").mkdir()
    assert open_feature_store(tmp_path, "space").shards.keys() == {"a", "b"}


@pytest.mark.parametrize("name", ["features.npy", "manifest.json"])
@pytest.mark.parametrize("way", ["flipped", "truncated", "extended", "deleted"])
def test_a_damaged_shard_is_left_out_and_its_samples_are_missing(store, tmp_path, damage, caplog, name, way):
    path = tmp_path / "features" / "space" / "a" / name
    damage[way](path)
    now = open_feature_store(tmp_path, "space")
    assert now.known == {"s1", "s3"}
    assert now.missing(["s0", "s1"]) == ["s0"]
    assert (f"{path}" in caplog.text) is ((name, way) != ("manifest.json", "deleted"))


@pytest.mark.parametrize("name", ["features.npy", "manifest.json"])
@pytest.mark.parametrize("way", ["flipped", "truncated", "extended"])
def test_a_damaged_shard_that_is_read_by_itself_is_refused(tmp_path, damage, name, way):
    ref = ArtifactRef(stage="features/space", fingerprint="a", path=str(store_shard(tmp_path, "a", ["s0"])))
    assert read_shard(ref).sample_ids == ("s0",)
    damage[way](Path(ref.path) / name)
    with pytest.raises(StaleArtifact, match=f"{name}.*run the pipeline again"):
        read_shard(ref)


@pytest.mark.parametrize("manifest", [{}, {"excluded": [[]]}])
def test_a_manifest_that_is_no_shards_is_stale(tmp_path, manifest):
    with new_artifact(tmp_path, "features/space", "a", manifest) as folder:
        np.save(folder / "features.npy", np.eye(2))
    with pytest.raises(StaleArtifact, match="says not what a shard's does"):
        open_feature_store(tmp_path, "space")


def test_a_shard_of_another_space_is_not_mixed_in(store, tmp_path, caplog):
    shutil.copytree(tmp_path / "features" / "space", tmp_path / "features" / "other")
    store_shard(tmp_path, "c", ["s5"], space="other")
    assert open_feature_store(tmp_path, "other").known == {"s5"}
    assert "features/other/a belongs, but holds features/space/a" in caplog.text


def test_shards_that_have_swapped_their_files_are_left_out(store, tmp_path):
    space = tmp_path / "features" / "space"
    store_shard(tmp_path, "c", ["s5", "s2"])
    kept = (space / "b" / "features.npy").read_bytes()
    (space / "c" / "features.npy").replace(space / "b" / "features.npy")
    (space / "c" / "features.npy").write_bytes(kept)
    assert open_feature_store(tmp_path, "space").known == {"s0", "s4"}


def test_a_shard_under_the_name_of_another_is_left_out(store, tmp_path):
    space = tmp_path / "features" / "space"
    (space / "b").rename(space / "c")
    assert open_feature_store(tmp_path, "space").known == {"s0", "s4"}


@pytest.mark.parametrize("value", [0.0, 2.0, float("nan")])
def test_a_row_that_was_never_written_is_stale(tmp_path, value):
    store_shard(tmp_path, "a", ["s0"], rows={"s0": np.full(5, value)})
    with pytest.raises(StaleArtifact, match=r"row 0 of .* instead of 1"):
        open_feature_store(tmp_path, "space").read(["s0"])


def test_a_shard_deleted_after_opening_is_missing(store, tmp_path):
    shutil.rmtree(tmp_path / "features" / "space" / "a")
    with pytest.raises(MissingArtifact, match="run the pipeline again"):
        store.read(["s0"])


def test_shards_of_different_widths_do_not_mix(store, tmp_path):
    store_shard(tmp_path, "c", ["s5"], dim=4)
    with pytest.raises(StaleArtifact, match=r"lengths \[4, 5\]"):
        open_feature_store(tmp_path, "space")


def test_a_sample_in_two_shards_is_read_once_and_a_success_outweighs_a_failure(store, tmp_path):
    store_shard(tmp_path, "c", ["s0", "s2"])
    both = open_feature_store(tmp_path, "space")
    assert both.locations(["s0", "s2"]) == [("a", 0), ("c", 1)]
    assert both.excluded == {}


def test_a_pass_killed_half_way_goes_on_with_what_is_missing(make_model, make_samples, tmp_path):
    samples, model = make_samples(), make_model()
    ids = [sample.sample_id for sample in samples]
    lengths = np.array([len(sample.input_ids) for sample in samples])
    shards = plan_shards("space", ids, lengths, shard_samples=3, max_batch_tokens=40)
    by_id = dict(zip(ids, samples, strict=True))
    for number, shard in enumerate(shards):
        assert open_feature_store(tmp_path, "space").missing(shard.sample_ids) == list(shard.sample_ids), (
            number
        )
        content = [by_id[i] for i in shard.sample_ids]
        ref = write_shard(tmp_path, "space", shard, model, content, moments=None, projection=None)
        assert json.loads((Path(ref.path) / "manifest.json").read_text())["sample_ids"] == list(
            shard.sample_ids
        )
    assert open_feature_store(tmp_path, "space").missing(ids) == []


def test_shards_that_other_machines_stored_are_found_and_fetched(tmp_path):
    here, there = (mirror_folder(tmp_path / name, f"file://{tmp_path}/objects") for name in ("here", "there"))
    store_shard(here, "a", ["s0", "s2"])
    store_shard(there, "b", ["s1"])
    (tmp_path / "objects" / "features" / "space" / "unfinished").mkdir()
    found = open_feature_store(here, "space")
    assert found.shards.keys() == {"a", "b"}
    np.testing.assert_allclose(found.read(["s1", "s0"]), [ROWS["s1"], ROWS["s0"]], atol=1e-3)
    assert open_feature_store(there, "space").known == {"s0", "s1", "s2"}
