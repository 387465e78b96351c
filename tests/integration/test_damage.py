"""A finished run whose artifacts are damaged: found before use, computed again, the same to the last byte."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from clusterucb_core.artifacts import MANIFEST
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.features.store import open_feature_store
from clusterucb_core.lm.loading import load_tokenizer
from clusterucb_core.outcome import finished_result
from clusterucb_core.stages.models import FeatureSpace, ModelRef, resolve_model
from clusterucb_core.store import open_catalog, selection_samples
from clusterucb_core.workspace import stage_key

pytestmark = pytest.mark.slow

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = ("pool.max_samples=200", "warmup.epochs=2", "finetune.epochs=1")
STAGES = (
    "ingest", "tokens", "target", "candidates", "shared", "training", "features", "clustering", "draws",
    "evaluation",
)  # fmt: skip
# what has used some artifacts of these stages is removed, too: who finds its result does not read them
USERS = {"tokens": ("draws",), "features": ("clustering", "draws")}


@dataclass(frozen=True)
class Disturbed:
    """A copy of the state folder of a finished run, and how to run again in it."""

    home: Path
    again: object

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module")
def undisturbed(plain, config, tmp_path_factory):
    return plain.run_plain(config, tmp_path_factory.mktemp("home"), *SMALL)


@pytest.fixture
def copied(plain, config, undisturbed, tmp_path):
    home = shutil.copytree(undisturbed.plan.workspace.home, tmp_path / "home")
    return Disturbed(home, lambda: plain.run_plain(config, home, *SMALL))


def files_of(home: Path) -> dict[str, object]:
    """Return what lies below the artifacts of a state folder; a result holds the time that it took."""
    root = home / "artifacts"
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(root)): path.read_bytes() for path in paths if path.parents[1].name != "runs"
    }


def selected(run) -> list[tuple]:
    with open_catalog(run.plan.workspace.catalog, read_only=True) as con:
        return [
            selection_samples(con, version).select("rank", "sample_id", "influence").rows()
            for version in run.result.versions
        ]


def damage_stage(root: Path, stage: str, way) -> list[Path]:
    """Damage the largest file of every artifact of a stage, and the manifest of every second one."""
    damaged = []
    for number, manifest in enumerate(sorted((root / stage).rglob(MANIFEST))):
        files = [path for path in manifest.parent.rglob("*") if path.is_file() and path != manifest]
        largest = max(files, key=lambda path: (path.stat().st_size, path.name))
        damaged.append(manifest if number % 2 else largest)
        way(damaged[-1])
    return damaged


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", ["flipped", "truncated", "deleted"])
def test_a_damaged_stage_is_computed_again_to_the_same_bytes(copied, undisturbed, damage, caplog, stage, way):
    damaged = damage_stage(copied.artifacts, stage, damage[way])
    assert damaged
    for user in USERS.get(stage, ()):
        shutil.rmtree(copied.artifacts / user)
    run = copied.again()
    assert run.result.versions == undisturbed.result.versions
    assert selected(run) == selected(undisturbed)
    assert files_of(copied.home) == files_of(Path(undisturbed.plan.workspace.home))
    for path in damaged:
        # a folder without a manifest was never finished: there is nothing to warn of
        assert (str(path) in caplog.text) is ((path.name, way) != (MANIFEST, "deleted")), path


def test_a_repeat_finds_a_damaged_result_or_checkpoint(copied, undisturbed, damage):
    shutil.rmtree(copied.artifacts / "runs")  # it names the checkpoints of the folder that was copied
    plan = copied.again().plan
    assert finished_result(plan) is not None
    (training, *_) = sorted(copied.artifacts.glob("training/*/checkpoint-1/adapter_model.safetensors"))
    damage["flipped"](training)
    assert finished_result(plan) is None
    assert selected(copied.again()) == selected(undisturbed)
    assert finished_result(plan) is not None


def test_bits_that_rot_without_a_trace_in_the_times_of_a_file_are_found(copied, undisturbed, damage, caplog):
    """As on a disk: only the content changes. This process has read none of the copies."""
    damaged = sorted(copied.artifacts.glob("features/*/*/features.npy"))
    for path in damaged:
        before = path.stat()
        damage["flipped"](path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert selected(copied.again()) == selected(undisturbed)
    assert all(str(path) in caplog.text for path in damaged)


CHANGES = {
    "weights": lambda base: flip_last_bit(base / "model.safetensors"),
    "tokenizer": lambda base: rename_token(base / "tokenizer.json"),
    "chat template": lambda base: (base / "chat_template.jinja").write_text("{{ messages }}"),
}
SETTINGS = {
    "adapter": {"lora.r": 3},
    "configured template": {"chat_template": "{{ messages[0].content }}"},
    "length": {"max_length": 60},
    "precision": {"dtype": "bfloat16"},
}


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rename_token(path: Path) -> None:
    tree = json.loads(path.read_text())
    tree["added_tokens"][0]["lstrip"] = not tree["added_tokens"][0]["lstrip"]
    path.write_text(json.dumps(tree))


def space_with(space: FeatureSpace, model: ModelRef) -> FeatureSpace:
    return space.model_copy(update={"model": model})


@pytest.mark.parametrize("what", [*CHANGES, *SETTINGS])
def test_features_of_another_model_tokenizer_template_or_adapter_are_not_taken(
    copied, undisturbed, tmp_path, caplog, what
):
    space = undisturbed.chosen.periods[0].spec.spaces[0]
    settings = space.model.settings
    base = shutil.copytree(settings.base, tmp_path / "base")
    same = resolve_model(settings.model_copy(update={"base": str(base)}), "cpu")
    assert stage_key(space_with(space, same)) == stage_key(space), "where a model lies does not matter"
    if what in CHANGES:
        CHANGES[what](base)
        load_tokenizer(same.settings)  # still a model that a run would take
        other = resolve_model(same.settings, "cpu")
    else:
        other = resolve_model(changed(same.settings, SETTINGS[what]), "cpu")
    key = stage_key(space_with(space, other))
    shutil.copytree(copied.artifacts / "features" / stage_key(space), copied.artifacts / "features" / key)
    assert open_feature_store(copied.artifacts, stage_key(space)).known
    assert not open_feature_store(copied.artifacts, key).known
    assert f"belongs, but holds features/{stage_key(space)}" in caplog.text


def changed(settings, change: dict[str, object]):
    ((name, value),) = change.items()
    if name == "lora.r":
        return settings.model_copy(update={"lora": settings.lora.model_copy(update={"r": value})})
    return settings.model_copy(update={name: value})


def test_shards_of_the_pool_and_of_the_target_are_not_mixed(copied, undisturbed, caplog):
    """Adam's gradients of the pool and plain ones of the target: the same model, another kind."""
    spaces = sorted((copied.artifacts / "features").iterdir())
    assert len(spaces) > 1
    shards = [shard for space in spaces for shard in space.iterdir()]
    for number, shard in enumerate(shards):
        for other in (space for space in spaces if space != shard.parent):
            shutil.copytree(shard, other / f"{number:032x}")
    shutil.rmtree(copied.artifacts / "clustering")
    shutil.rmtree(copied.artifacts / "draws")
    assert selected(copied.again()) == selected(undisturbed)
    assert "belongs, but holds features/" in caplog.text
    own = files_of(Path(undisturbed.plan.workspace.home))
    found = files_of(copied.home)
    assert {name: found.get(name) for name in own} == own
    mixed_in = {name.split("/")[1] for name in set(found) - set(own)}
    assert len(mixed_in) < len(spaces) / 2, "a space that is opened is rid of the shards of others"
