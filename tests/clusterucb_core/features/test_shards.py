import json
import logging
from pathlib import Path

import numpy as np
import pytest

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.features.gradients import AdamMoments, gradient_features
from clusterucb_core.features.projections import RollSketch
from clusterucb_core.features.shards import plan_shards, remaining_shard, write_shard
from clusterucb_core.features.store import open_feature_store, read_shard
from clusterucb_core.records import TokenizedSample

ROLL = RollSketch(dim=32, seed=0)


def plan(samples, *, shard_samples=4, max_batch_tokens=60):
    return plan_shards(
        "space",
        [sample.sample_id for sample in samples],
        np.array([len(sample.input_ids) for sample in samples]),
        shard_samples=shard_samples,
        max_batch_tokens=max_batch_tokens,
    )


def batches_of(shards):
    return [tuple(s.sample_ids[i] for i in batch) for s in shards for batch in s.batches]


def write_all(root, shards, model, samples, **kwargs):
    by_id = {sample.sample_id: sample for sample in samples}
    options = {"moments": None, "projection": ROLL} | kwargs
    return [
        write_shard(root, "space", shard, model, [by_id[i] for i in shard.sample_ids], **options)
        for shard in shards
    ]


def stored_rows(root):
    """Return the 16-bit bytes of every sample."""
    rows = {}
    for folder in (root / "features" / "space").iterdir():
        ids = json.loads((folder / "manifest.json").read_text())["sample_ids"]
        rows |= dict(zip(ids, (row.tobytes() for row in np.load(folder / "features.npy")), strict=True))
    return rows


def test_shards_cover_the_request_once_in_whole_batches(make_samples):
    samples = make_samples(range(1, 40))
    shards = plan(samples, shard_samples=10)
    assert sorted(i for shard in shards for i in shard.sample_ids) == [s.sample_id for s in samples]
    assert len(shards) > 3
    assert all(len(shard.sample_ids) <= 10 or len(shard.batches) == 1 for shard in shards)


def test_neither_shard_size_nor_order_of_the_request_changes_a_batch(make_samples):
    samples = make_samples((5, 23, 12, 9, 17, 12, 3, 12, 9))
    expected = batches_of(plan(samples))
    assert len(expected) > 2
    for size in (1, 2, 100):
        assert batches_of(plan(samples, shard_samples=size)) == expected
    assert plan(samples[::-1]) == plan(samples)
    assert plan(samples + samples[:3]) == plan(samples)


def test_the_shard_count_changes_no_byte_of_a_feature(make_model, make_samples, tmp_path):
    samples, model = make_samples((5, 23, 12, 9, 17, 12, 3, 12, 9)), make_model()
    for size in (1, 4, 100):
        write_all(tmp_path / str(size), plan(samples, shard_samples=size), model, samples)
    one, four, hundred = (stored_rows(tmp_path / name) for name in ("1", "4", "100"))
    assert one == four == hundred
    assert len(one) == len(samples)


def test_a_finished_shard_is_not_computed_again(make_model, make_samples, tmp_path):
    samples = make_samples()
    shards = plan(samples)
    first = write_all(tmp_path, shards, make_model(), samples)
    assert write_all(tmp_path, shards, None, samples) == first


def test_a_failed_shard_leaves_nothing_behind(make_model, make_samples, tmp_path):
    samples = make_samples()
    broken = TokenizedSample(samples[1].sample_id, samples[1].input_ids + 1000, samples[1].labels)
    with pytest.raises(Exception, match="vocabulary"):
        write_all(tmp_path, plan(samples), make_model(), [samples[0], broken, *samples[2:]])
    assert all((path / "manifest.json").is_file() for path in (tmp_path / "features" / "space").iterdir())


def test_samples_in_another_order_are_refused(make_model, make_samples, tmp_path):
    samples = make_samples()
    shard = plan(samples, shard_samples=100)[0]
    with pytest.raises(ValueError, match="are not those of shard"):
        write_shard(tmp_path, "space", shard, make_model(), samples, moments=None, projection=None)


def test_a_shard_read_whole_tells_what_is_in_it_and_what_is_not(make_model, make_samples, tmp_path, caplog):
    samples = make_samples()
    samples[4] = TokenizedSample(samples[4].sample_id, samples[4].input_ids, np.full(17, -100))
    with caplog.at_level(logging.INFO):
        (ref,) = write_all(tmp_path, plan(samples, shard_samples=100), make_model(), samples)
    content = read_shard(ref)
    assert content.features.shape == (6, 32)
    assert sorted([*content.sample_ids, content.excluded[0].sample_id]) == [s.sample_id for s in samples]
    assert (content.excluded[0].stage, content.excluded[0].reason) == ("features", "no_supervised_token")
    assert "6 features, 1 excluded" in caplog.text


@pytest.mark.parametrize("projection", [None, ROLL])
def test_stored_rows_are_the_features_at_unit_length(make_model, make_samples, tmp_path, projection):
    model, samples = make_model(), make_samples()
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = AdamMoments(np.full(size, 1e-3), np.full(size, 1e-6))
    write_all(tmp_path, plan(samples), model, samples, moments=moments, projection=projection)
    expected = gradient_features(model, samples, moments, projection)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = open_feature_store(tmp_path, "space").read([s.sample_id for s in samples])
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max(), "16 bits round to 5e-4"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_provenance_of_a_feature_is_kept(make_model, make_samples, tmp_path):
    samples = make_samples()
    write_all(tmp_path, plan(samples), make_model(), samples, provenance={"run_id": "r1"})
    assert open_feature_store(tmp_path, "space").provenance(samples[0].sample_id) == {"run_id": "r1"}


def test_the_remaining_part_of_a_shard_keeps_its_batches(make_samples):
    samples = make_samples((5, 23, 12, 9, 17, 12, 3))
    (shard,) = plan(samples, shard_samples=100)
    missing = set(shard.batches and shard.sample_ids[2:])
    rest = remaining_shard("space", shard, missing)
    expected = [tuple(i for i in batch if i in missing) for batch in batches_of([shard])]
    assert batches_of([rest]) == [batch for batch in expected if batch]
    assert remaining_shard("space", shard, set(shard.sample_ids)) == shard
    assert remaining_shard("space", shard, set()) is None


@pytest.mark.parametrize("sizes", [{"shard_samples": 0}, {"max_batch_tokens": 0}])
def test_sizes_below_one_are_refused(make_samples, sizes):
    with pytest.raises(InvalidConfig, match="=0"):
        plan(make_samples(), **sizes)


def test_files_need_no_pickle(make_model, make_samples, tmp_path):
    samples = make_samples((4, 5))
    (ref,) = write_all(tmp_path, plan(samples), make_model(), samples)
    rows = np.load(Path(ref.path) / "features.npy", allow_pickle=False)
    assert (rows.dtype, rows.shape) == (np.float16, (2, 32))
