"""Files of a model that could run code: each leaves a marker where it does, and none may."""

import json
import shutil

import pytest

from clusterucb_core.errors import InvalidModel
from clusterucb_core.lm.loading import load_base, load_config, load_tokenizer, model_fingerprint
from clusterucb_core.lm.lora import count_parameters, load_adapter
from clusterucb_core.lm.own_code import refuse_code_of_hub
from clusterucb_core.lm.settings import ModelSettings
from clusterucb_core.stages.models import resolve_model, resolve_proxy

CLASSES = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL_CODE = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
TOKENIZER_CODE = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
WAYS = {
    "config": load_config,
    "tokenizer": load_tokenizer,
    "weights": lambda settings: load_base(settings, "cpu"),
    "size": count_parameters,
    "run": lambda settings: resolve_model(settings, "cpu"),
}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda _: "y")  # what transformers asks where it is not told
    return tmp_path / "marker"


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture
def with_code(folder, marker):
    """Give a folder code of its own; `unknown`: under a name that transformers has no class for."""

    def make(*, unknown: bool = True, **auto_maps):
        for name, auto_map in auto_maps.items():
            path = folder / f"{name}.json"
            changed = {"auto_map": auto_map} | ({"model_type": "own"} if unknown and name == "config" else {})
            path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changed), encoding="utf-8")
        (folder / "own.py").write_text(CLASSES.format(marker=str(marker)), encoding="utf-8")
        return folder

    return make


def settings(base, **changes) -> ModelSettings:
    return ModelSettings(**({"base": str(base), "max_length": 64} | changes))


def pickle_that_touches(path) -> bytes:
    """Return a pickle, written by hand, that runs a command when it is read."""
    return f"cos\nsystem\n(S'touch {path}'\ntR.".encode()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("unknown", [True, False])
def test_code_of_a_model_is_refused_whatever_is_loaded_and_never_runs(with_code, marker, way, unknown):
    folder = with_code(config=MODEL_CODE, unknown=unknown)
    with pytest.raises(
        InvalidModel, match=r"brings code of its own \(own\.OwnConfig, own\.OwnModel; own\.py\)"
    ):
        WAYS[way](settings(folder))
    assert not marker.exists()


@pytest.mark.parametrize("way", WAYS)
def test_code_of_a_tokenizer_is_refused_and_never_runs(with_code, marker, way):
    folder = with_code(tokenizer_config=TOKENIZER_CODE)
    with pytest.raises(
        InvalidModel, match=r"own\.OwnTokenizer; own\.py.*remove auto_map from tokenizer_config\.json"
    ):
        WAYS[way](settings(folder))
    assert not marker.exists()


def test_code_of_a_proxy_is_refused_and_never_runs(model_folder, with_code, marker):
    folder = with_code(config=MODEL_CODE)
    with pytest.raises(InvalidModel, match=r"brings code of its own"):
        resolve_proxy(settings(model_folder), str(folder), "cpu")
    assert not marker.exists()


def allowed_name(folder) -> str:
    with pytest.raises(InvalidModel) as refused:
        load_config(settings(folder))
    return str(refused.value).rpartition("[")[2].rstrip("]")


def test_code_that_is_allowed_by_its_name_runs_until_it_changes(with_code, marker):
    folder = with_code(config=MODEL_CODE)
    allowed = settings(folder, trusted_code=(allowed_name(folder),))
    assert type(load_base(allowed, "cpu")).__name__ == "OwnModel"
    assert marker.exists()
    marker.unlink()
    (folder / "own.py").write_text(CLASSES.format(marker=str(marker)) + "\n", encoding="utf-8")
    with pytest.raises(InvalidModel, match="brings code of its own"):
        load_base(allowed, "cpu")
    assert not marker.exists()


def test_allowed_code_counts_as_part_of_the_model(model_folder, with_code):
    folder = with_code(config=MODEL_CODE, unknown=False)
    allowed = settings(folder, trusted_code=(allowed_name(folder),))
    assert resolve_model(allowed, "cpu").digest != resolve_model(settings(model_folder), "cpu").digest


def test_code_of_another_place_cannot_be_allowed(with_code, marker):
    folder = with_code(config={"AutoConfig": "somebody/else--own.OwnConfig"})
    with pytest.raises(InvalidModel, match=r"code of another place \(somebody/else--own\.OwnConfig\)"):
        load_config(settings(folder))
    assert not marker.exists()


def test_a_model_of_the_hub_with_code_is_refused():
    refuse_code_of_hub("owner/name", None)
    with pytest.raises(InvalidModel, match=r"'owner/name' brings code of its own \(own\.OwnModel\)"):
        refuse_code_of_hub("owner/name", {"AutoModelForCausalLM": "own.OwnModel"})


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_alone_are_refused_and_never_read(folder, marker, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle_that_touches(marker))
    for attempt in (lambda: load_base(settings(folder), "cpu"), lambda: model_fingerprint(str(folder))):
        with pytest.raises(InvalidModel, match=r"save_pretrained\(safe_serialization=True\)"):
            attempt()
    assert not marker.exists()


def test_pickles_beside_safetensors_are_never_read(folder, marker):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "tokenizer.pkl"):
        (folder / name).write_bytes(pickle_that_touches(marker))
    load_base(settings(folder), "cpu")
    load_tokenizer(settings(folder))
    assert not marker.exists()


def test_a_pickled_adapter_is_never_read(model_folder, tmp_path, marker):
    from clusterucb_core.errors import MissingArtifact

    (tmp_path / "adapter_model.bin").write_bytes(pickle_that_touches(marker))
    with pytest.raises(MissingArtifact, match=r"adapter_model\.safetensors is missing"):
        load_adapter(settings(model_folder), tmp_path, "cpu")
    assert not marker.exists()


def test_a_folder_that_leads_to_another_base_model_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "other"}', encoding="utf-8")
    with pytest.raises(InvalidModel, match=r"would load the model it names"):
        load_base(settings(folder), "cpu")


@pytest.mark.parametrize("name", ["../other.safetensors", "/tmp/other.safetensors", "deep/model.safetensors"])
def test_an_index_of_weights_that_leaves_the_folder_is_refused(folder, name):
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InvalidModel, match="which is no file of the folder"):
        load_base(settings(folder), "cpu")


def test_a_damaged_index_of_weights_is_refused(folder):
    (folder / "model.safetensors.index.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InvalidModel, match="is no index of weights"):
        load_base(settings(folder), "cpu")
