import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clusterucb_core.errors import InvalidModel, MissingArtifact, StaleArtifact, TrainingDiverged
from clusterucb_core.lm.checkpoints import (
    StepRecord,
    read_checkpoint,
    read_history,
    read_moments,
    restore_moments,
    save_checkpoint,
)
from clusterucb_core.lm.lora import LoraSettings, ModelSettings, new_adapter

HISTORY = [
    StepRecord(step=7, loss=2.5, learning_rate=0.3),
    StepRecord(step=8, loss=2.0, learning_rate=0.1),
]


@pytest.fixture
def model(model_folder):
    lora = LoraSettings(r=2, alpha=4, target_modules=("q_proj", "v_proj"))
    return new_adapter(ModelSettings(base=str(model_folder), max_length=64, lora=lora), "cpu", 0)


@pytest.fixture
def optimizer(model):
    torch_optimizer = adam(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in trainable(model):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        torch_optimizer.step()
    return torch_optimizer


def trainable(model):
    return [parameter for _, parameter in model.named_parameters() if parameter.requires_grad]


def adam(model):
    return torch.optim.AdamW(trainable(model), lr=1e-3)


def save(folder, model, optimizer):
    return save_checkpoint(folder, model, optimizer, epoch=2, total_steps=9, history=HISTORY)


def test_what_is_written_of_a_checkpoint_is_read_again(tmp_path, model, optimizer):
    written = save(tmp_path / "c", model, optimizer)
    assert read_checkpoint(tmp_path / "c") == written
    assert (written.step, written.epoch, written.total_steps) == (8, 2, 9)
    assert written.mean_learning_rate == pytest.approx(0.2)
    assert read_history(tmp_path / "c") == tuple(HISTORY)


def test_a_checkpoint_holds_no_pickle_and_no_leftovers(tmp_path, model, optimizer):
    save(tmp_path / "c", model, optimizer)
    save(tmp_path / "c", model, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoint.json",
        "moments.safetensors",
    ]


def test_moments_are_the_optimisers_in_the_order_of_the_parameters(tmp_path, model, optimizer):
    save(tmp_path / "c", model, optimizer)
    first, second = read_moments(tmp_path / "c", model)
    for kind, values in (("exp_avg", first), ("exp_avg_sq", second)):
        wanted = torch.cat([optimizer.state[parameter][kind].flatten() for parameter in trainable(model)])
        np.testing.assert_array_equal(values, wanted.numpy())
        assert values.dtype == np.float32


def test_a_restored_optimiser_takes_the_same_step(tmp_path, model, optimizer):
    save(tmp_path / "c", model, optimizer)
    before = [parameter.detach().clone() for parameter in trainable(model)]
    optimizer.step()
    wanted = [parameter.detach().clone() for parameter in trainable(model)]
    for parameter, value in zip(trainable(model), before, strict=True):
        parameter.data.copy_(value)
    fresh = adam(model)
    restore_moments(tmp_path / "c", model, fresh)
    fresh.step()
    assert all(torch.equal(*pair) for pair in zip(trainable(model), wanted, strict=True))


@pytest.mark.parametrize("change", ["renamed", "reshaped", "dropped"])
def test_moments_of_another_model_are_stale(tmp_path, model, optimizer, change):
    save(tmp_path / "c", model, optimizer)
    path = tmp_path / "c" / "moments.safetensors"
    moments = load_file(path)
    name = sorted(moments)[0]
    value = moments.pop(name)
    if change == "renamed":
        moments[name + "x"] = value
    if change == "reshaped":
        moments[name] = value[:, :1].contiguous()
    save_file(moments, path)
    with pytest.raises(StaleArtifact, match=r"entries differ, such as exp_avg\."):
        read_moments(tmp_path / "c", model)


def test_damaged_and_missing_checkpoints_are_told_apart(tmp_path, model, optimizer):
    with pytest.raises(MissingArtifact, match=r"checkpoint\.json is missing"):
        read_checkpoint(tmp_path / "none")
    with pytest.raises(MissingArtifact, match=r"moments\.safetensors is missing"):
        read_moments(tmp_path / "none", model)
    save(tmp_path / "c", model, optimizer)
    (tmp_path / "c" / "checkpoint.json").write_text('{"step": "many"}', encoding="utf-8")
    (tmp_path / "c" / "moments.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(StaleArtifact, match=r"checkpoint.json cannot be used .*by an earlier version"):
        read_checkpoint(tmp_path / "c")
    with pytest.raises(StaleArtifact, match="cannot be read"):
        read_moments(tmp_path / "c", model)


FILES = ["adapter_model.safetensors", "adapter_config.json", "moments.safetensors", "checkpoint.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", ["flipped", "truncated", "extended", "deleted"])
def test_no_training_goes_on_from_a_damaged_checkpoint(tmp_path, model, optimizer, damage, name, way):
    save(tmp_path / "c", model, optimizer)
    damage[way](tmp_path / "c" / name)
    wanted = MissingArtifact if (name, way) == ("checkpoint.json", "deleted") else StaleArtifact
    with pytest.raises(wanted, match=f"{name}.*run"):
        read_checkpoint(tmp_path / "c")


def test_the_adapter_of_another_checkpoint_is_found_out(tmp_path, model, optimizer):
    save(tmp_path / "c", model, optimizer)
    for parameter in trainable(model):
        parameter.data.add_(1)
    save(tmp_path / "d", model, optimizer)
    shutil.copy(tmp_path / "d" / FILES[0], tmp_path / "c" / FILES[0])
    with pytest.raises(StaleArtifact, match=f"{FILES[0]} is damaged"):
        read_checkpoint(tmp_path / "c")


def test_a_parameter_without_a_gradient_is_named(tmp_path, model):
    with pytest.raises(InvalidModel, match=r"q_proj\.lora_A\.default\.weight received no gradient"):
        save(tmp_path / "c", model, adam(model))
    assert not (tmp_path / "c").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path, model, optimizer):
    trainable(model)[0].data[0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match="is not finite after training"):
        save(tmp_path / "c", model, optimizer)
