"""Features of one space cannot be taken for those of another, whatever differs between the two."""

import shutil

import numpy as np
import pytest

from clusterucb_core.artifacts import find_artifact, new_artifact
from clusterucb_core.errors import MissingArtifact, StaleArtifact
from clusterucb_core.features.store import open_feature_store, read_shard
from clusterucb_core.lm.settings import ModelSettings
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.models import CheckpointRef, FeatureSpace, ModelRef, checkpoint_folder
from clusterucb_core.workspace import stage_key

MODEL = ModelRef(settings=ModelSettings(base="m"), digest="m", n_parameters=2, n_lora_parameters=1)
TRAINING = ArtifactRef(stage="training", fingerprint="t", path="/somewhere")
SPACE = FeatureSpace(
    model=MODEL,
    checkpoint=CheckpointRef(training=TRAINING, index=1),
    kind="adam",
    projection="roll",
    projection_dim=4,
    seed=0,
)
CHANGES = {
    "model, adapter settings, tokenizer or template": {"model": MODEL.model_copy(update={"digest": "n"})},
    "training": {
        "checkpoint": CheckpointRef(training=TRAINING.model_copy(update={"fingerprint": "u"}), index=1)
    },
    "checkpoint": {"checkpoint": CheckpointRef(training=TRAINING, index=2)},
    "no checkpoint": {"checkpoint": None},
    "kind": {"kind": "plain"},
    "projection": {"projection": "none"},
    "dimensions": {"projection_dim": 8},
    "seed of the projection": {"seed": 1},
    "version": {"version": 3},
}


@pytest.fixture
def stored(tmp_path):
    """Features of the sample a in the space."""
    manifest = {"sample_ids": ["a"], "excluded": [], "provenance": {}, "dim": 4}
    stage = f"features/{stage_key(SPACE)}"
    with new_artifact(tmp_path, stage, "shard", manifest) as folder:
        np.save(folder / "features.npy", np.eye(1, 4, dtype=np.float16))
    assert open_feature_store(tmp_path, stage_key(SPACE)).known == {"a"}
    return tmp_path / stage / "shard"


@pytest.mark.parametrize("what", CHANGES)
def test_a_shard_of_a_space_that_differs_in_one_thing_is_neither_found_nor_taken(
    tmp_path, stored, caplog, what
):
    other = stage_key(SPACE.model_copy(update=CHANGES[what]))
    assert open_feature_store(tmp_path, other).known == set()
    mixed = tmp_path / "features" / other / "shard"
    shutil.copytree(stored, mixed)
    ref = ArtifactRef(stage=f"features/{other}", fingerprint="shard", path=str(mixed))
    with pytest.raises(StaleArtifact, match=f"belongs, but holds features/{stage_key(SPACE)}/shard"):
        read_shard(ref)
    assert open_feature_store(tmp_path, other).known == set()
    assert f"lies where features/{other}/shard belongs" in caplog.text
    assert stored.is_dir()


def write_training(root, key, weights):
    with new_artifact(root, "training", key, {}) as folder:
        for index in (1, 2):
            (folder / f"checkpoint-{index}").mkdir()
            (folder / f"checkpoint-{index}" / "adapter").write_text(f"{weights}, checkpoint {index}")
    return find_artifact(root, "training", key)


def test_the_adapter_of_another_training_or_checkpoint_is_not_taken(tmp_path):
    one, two = write_training(tmp_path, "one", "w"), write_training(tmp_path, "two", "v")
    own = checkpoint_folder(CheckpointRef(training=one, index=1))
    checkpoint_folder(CheckpointRef(training=two, index=1))
    for other in (own.with_name("checkpoint-2"), tmp_path / "training" / "two" / "checkpoint-1"):
        shutil.copy(other / "adapter", own / "adapter")
        with pytest.raises(StaleArtifact, match="checkpoint-1/adapter is damaged"):
            checkpoint_folder(CheckpointRef(training=one, index=1))
    assert checkpoint_folder(CheckpointRef(training=one, index=2)) == own.with_name("checkpoint-2")
    shutil.rmtree(one.path)
    with pytest.raises(MissingArtifact, match="run the pipeline again"):
        checkpoint_folder(CheckpointRef(training=one, index=1))
    shutil.copytree(two.path, one.path)
    with pytest.raises(StaleArtifact, match="lies where training/one belongs, but holds training/two"):
        checkpoint_folder(CheckpointRef(training=one, index=1))
