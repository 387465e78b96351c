"""The demo folder as a whole: written once, reused when finished, rebuilt when not."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from clusterucb_core.demo import FAMILIES, DemoFiles, write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

SMALL = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)


def written(folder: Path, seed: int = 0) -> DemoFiles:
    return write_demo(folder, seed=seed, recipe=SMALL)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    written(folder)
    return folder


@pytest.fixture
def files(finished, tmp_path) -> DemoFiles:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return written(tmp_path)


def test_the_result_names_files_that_exist(files):
    assert [path.name.split(".")[0] for path in files.pool] == list(FAMILIES)
    assert all(path.is_file() for path in (files.config, files.target, *files.pool))
    assert (files.model / "model.safetensors").is_file()


def test_the_configuration_names_every_file_relative_to_itself(files):
    tree = yaml.safe_load(files.config.read_text())
    folder = files.config.parent
    assert [folder / source["path"] for source in tree["pool"]["sources"]] == list(files.pool)
    assert [source["name"] for source in tree["pool"]["sources"]] == list(FAMILIES)
    assert folder / tree["target"]["test"] == files.target
    assert folder / tree["model"]["base"] == files.model


def test_the_configuration_has_only_keys_of_the_contract(files):
    tree = yaml.safe_load(files.config.read_text())
    assert set(tree) == {
        *("pool", "target", "model", "mode", "warmup", "features", "clusters", "selection", "finetune"),
        *("evaluate", "seed"),
    }
    assert tree["evaluate"] == {"tasks": [], "baselines": ["zero_shot", "random", "full"], "random_seeds": 3}
    assert tree["selection"]["policy"] == "ucb_beta"
    assert tree["selection"]["top_fraction"] < tree["selection"]["budget_fraction"] <= 0.3


def test_a_finished_folder_is_reused_and_an_edited_configuration_kept(files, tmp_path):
    files.config.write_text(files.config.read_text().replace("seed: 0", "seed: 5"))
    before = times(tmp_path)
    assert written(tmp_path) == files
    assert times(tmp_path) == before


@pytest.mark.parametrize("damage", ["marker", "truncated marker", "pool", "stray pool file", "model"])
def test_a_half_written_folder_is_rebuilt(damage, files, tmp_path):
    expected = {path: path.read_bytes() for path in times(tmp_path)}
    match damage:
        case "marker":
            (tmp_path / "demo.json").unlink()
        case "truncated marker":
            (tmp_path / "demo.json").write_text('{"version"')
        case "pool":
            files.pool[0].write_text("half a fi")
        case "stray pool file":
            (files.pool[0].parent / "old.jsonl").write_text("{}")
        case _:
            (files.model / "model.safetensors").unlink()
    written(tmp_path)
    assert {path: path.read_bytes() for path in times(tmp_path)} == expected


def test_files_that_are_not_the_demos_stay(files, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "demo.json").unlink()
    written(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_another_seed_replaces_the_content(files, tmp_path):
    target = files.target.read_bytes()
    again = written(tmp_path, seed=1)
    assert again.target.read_bytes() != target
    assert yaml.safe_load(again.config.read_text())["seed"] == 1


def test_the_marker_documents_the_planted_dirt(files, tmp_path):
    marker = json.loads((tmp_path / "demo.json").read_text())
    assert sum(marker["samples"].values()) == 2000
    assert marker["quarantined"]["json_extraction"] == {"invalid_json": 3}
    assert marker["leaked"] == {"unit_conversion": 2}
    assert marker["target"] == {"validation": 20, "test": 100}
