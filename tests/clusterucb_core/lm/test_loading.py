import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from clusterucb_core.errors import InvalidConfig, InvalidModel
from clusterucb_core.lm import loading
from clusterucb_core.lm.loading import (
    load_base,
    load_config,
    load_tokenizer,
    model_fingerprint,
    resolve_device,
    resolve_dtype,
)
from clusterucb_core.lm.settings import ModelSettings


@pytest.fixture
def copied(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "copy")


def settings(base, **changes) -> ModelSettings:
    return ModelSettings(**({"base": str(base), "max_length": 64} | changes))


def test_devices_are_resolved_or_refused():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda")
    for name in ("gpu", "cuda:99", "cuda:x"):
        with pytest.raises(InvalidConfig, match=name):
            resolve_device(name)


def test_automatic_precision_is_float32_on_the_cpu_and_a_given_one_stays():
    assert resolve_dtype(settings("m"), "cpu").dtype == "float32"
    assert resolve_dtype(settings("m", dtype="float16"), "cpu").dtype == "float16"


def test_a_model_loads_in_evaluation_mode_and_the_asked_precision(model_folder):
    assert next(load_base(settings(model_folder), "cpu").parameters()).dtype.itemsize == 4
    model = load_base(settings(model_folder, dtype="bfloat16"), "cpu")
    assert next(model.parameters()).dtype.itemsize == 2
    assert not model.training


def test_threads_that_load_at_once_all_get_whole_models(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    tied = LlamaConfig(vocab_size=32, max_position_embeddings=64, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(tied).save_pretrained(tmp_path)
    with ThreadPoolExecutor(4) as threads:
        dtypes = ["float32", "bfloat16"] * 4
        models = list(threads.map(lambda dtype: load_base(settings(tmp_path, dtype=dtype), "cpu"), dtypes))
    assert [str(model.dtype).removeprefix("torch.") for model in models] == dtypes
    assert all(model.lm_head.weight is model.model.embed_tokens.weight for model in models)


def test_the_fingerprint_follows_content_and_not_the_place(model_folder, copied):
    fingerprint = model_fingerprint(str(model_folder))
    assert model_fingerprint(str(copied)) == fingerprint
    (copied / "README.md").write_text("changes nothing", encoding="utf-8")
    assert model_fingerprint(str(copied)) == fingerprint
    (copied / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert model_fingerprint(str(copied)) != fingerprint


def test_changed_weights_change_the_fingerprint(model_folder, copied):
    path = copied / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert model_fingerprint(str(copied)) != model_fingerprint(str(model_folder))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InvalidModel, match=r"gone' does not exist; give a model folder or a hub id"):
        load_base(settings(tmp_path / "gone"), "cpu")


def test_a_folder_with_pickled_weights_only_is_refused(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    for attempt in (lambda: load_base(settings(copied), "cpu"), lambda: model_fingerprint(str(copied))):
        with pytest.raises(InvalidModel, match=r"only pytorch_model\.bin, which can run code"):
            attempt()


def test_a_folder_without_weights_is_refused(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(InvalidModel, match="no weights at all"):
        load_base(settings(copied), "cpu")


def test_damaged_weights_are_refused(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InvalidModel, match=r"weights of .* cannot be loaded"):
        load_base(settings(copied), "cpu")


def test_incomplete_weights_are_refused_and_not_filled_at_random(copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InvalidModel, match=r"1 missing keys, such as model\.layers\.0\.self_attn\.q_proj\.weight"
    ):
        load_base(settings(copied), "cpu")


def test_a_damaged_configuration_is_refused(copied):
    (copied / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InvalidModel, match=r"config\.json of .* cannot be loaded"):
        load_config(settings(copied))


def test_an_unknown_architecture_is_refused(copied):
    (copied / "config.json").write_text(json.dumps({"model_type": "nothing_known"}), encoding="utf-8")
    with pytest.raises(InvalidModel, match="nothing_known"):
        load_base(settings(copied), "cpu")


def test_a_length_limit_above_the_models_positions_is_refused(model_folder):
    with pytest.raises(InvalidModel, match=r"max_length=65 is above the 64 positions"):
        load_base(settings(model_folder, max_length=65), "cpu")


def test_a_damaged_tokenizer_is_refused(copied):
    (copied / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(InvalidModel, match=r"tokenizer of .* cannot be loaded"):
        load_tokenizer(settings(copied))


def test_a_saved_tokenizer_loads(model_folder):
    assert load_tokenizer(settings(model_folder)).eos_token == "</s>"


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(
        InvalidModel, match=r"no folder here and the hub gave no such model \(no route to host\)"
    ):
        model_fingerprint("owner/no-such-model")


def test_a_cached_commit_stands_in_for_an_unreachable_hub(monkeypatch, caplog):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    for commit in ("abc", "def"):
        path = f"/cache/snapshots/{commit}/config.json"
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, path=path: path)
        assert model_fingerprint("owner/name") == loading.fingerprint("hub", "owner/name", commit)
        assert f"cached commit {commit}" in caplog.text
