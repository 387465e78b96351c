import json

import pytest
import torch
from pydantic import ValidationError

from clusterucb_core.errors import InvalidModel, MissingArtifact, StaleArtifact
from clusterucb_core.lm.lora import (
    LoraSettings,
    ModelSettings,
    count_lora_parameters,
    load_adapter,
    new_adapter,
)


def settings(base, **lora) -> ModelSettings:
    return ModelSettings(base=str(base), max_length=64, lora=LoraSettings(**({"r": 4, "alpha": 8} | lora)))


def trainable(model) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def saved(model, folder):
    from clusterucb_core.lm.checkpoints import StepRecord, save_checkpoint

    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad])
    for value in model.parameters():
        value.grad = torch.ones_like(value) if value.requires_grad else None
    optimizer.step()
    history = [StepRecord(step=1, loss=1.0, learning_rate=0.1)]
    save_checkpoint(folder, model, optimizer, epoch=1, total_steps=1, history=history)
    return folder


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(model_folder):
    first, again, other = (trainable(new_adapter(settings(model_folder), "cpu", seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(value.dtype == torch.float32 for value in first.values())


def test_a_new_adapter_leaves_the_global_generator_alone(model_folder):
    before = torch.get_rng_state()
    new_adapter(settings(model_folder), "cpu", 3)
    assert torch.equal(before, torch.get_rng_state())


def test_only_the_adapter_is_trainable_and_its_size_is_known_without_loading(model_folder):
    model = new_adapter(settings(model_folder), "cpu", 0)
    counted = sum(value.numel() for value in trainable(model).values())
    # q and o: 4 x (32 + 32); k and v: 4 x (32 + 16); two layers
    assert counted == 2 * (2 * 4 * 64 + 2 * 4 * 48)
    assert count_lora_parameters(settings(model_folder)) == counted
    assert all("lora_" in name for name in trainable(model))


def test_counting_leaves_the_global_generator_alone(model_folder):
    before = torch.get_rng_state()
    count_lora_parameters(settings(model_folder))
    assert torch.equal(before, torch.get_rng_state())


def test_a_missing_target_module_is_named_with_near_matches(model_folder):
    wrong = settings(model_folder, target_modules=("q_proj", "v_prj"))
    for attempt in (lambda: new_adapter(wrong, "cpu", 0), lambda: count_lora_parameters(wrong)):
        with pytest.raises(
            InvalidModel,
            match=r"did you mean v_proj.*: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj$",
        ):
            attempt()


def test_a_saved_adapter_loads_trainable_and_equal(model_folder, tmp_path):
    model = new_adapter(settings(model_folder), "cpu", 5)
    folder = saved(model, tmp_path / "checkpoint")
    loaded = trainable(load_adapter(settings(model_folder), folder, "cpu"))
    assert loaded.keys() == trainable(model).keys()
    assert all(torch.equal(value, loaded[name]) for name, value in trainable(model).items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_itself_can_load_a_checkpoint(model_folder, tmp_path):
    from peft import PeftModel

    from clusterucb_core.lm.loading import load_base

    model = new_adapter(settings(model_folder), "cpu", 5)
    folder = saved(model, tmp_path / "checkpoint")
    plain = PeftModel.from_pretrained(load_base(settings(model_folder), "cpu"), folder)
    ids = torch.arange(10)[None]
    assert torch.equal(plain.eval()(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("lora", [{"r": 8}, {"alpha": 16}, {"target_modules": ("q_proj",)}])
def test_an_adapter_of_another_shape_is_stale(model_folder, tmp_path, lora):
    folder = saved(new_adapter(settings(model_folder), "cpu", 0), tmp_path / "checkpoint")
    with pytest.raises(StaleArtifact, match="the configuration asks for"):
        load_adapter(settings(model_folder, **lora), folder, "cpu")


def test_a_damaged_or_missing_adapter_is_told_apart(model_folder, tmp_path):
    folder = saved(new_adapter(settings(model_folder), "cpu", 0), tmp_path / "checkpoint")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(StaleArtifact, match="cannot be read"):
        load_adapter(settings(model_folder), folder, "cpu")
    weights.unlink()
    with pytest.raises(MissingArtifact, match=r"adapter_model\.safetensors is missing"):
        load_adapter(settings(model_folder), folder, "cpu")


def test_the_saved_configuration_is_plain_sorted_json(model_folder, tmp_path):
    folder = saved(new_adapter(settings(model_folder), "cpu", 0), tmp_path / "checkpoint")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")


@pytest.mark.parametrize(
    "lora", [{"r": 0}, {"dropout": 1.0}, {"alpha": 0}, {"target_modules": ()}, {"rank": 3}]
)
def test_adapter_settings_have_bounds(lora):
    with pytest.raises(ValidationError):
        LoraSettings(**lora)
