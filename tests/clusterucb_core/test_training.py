import os
import random
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from clusterucb_core.errors import InvalidConfig, MissingArtifact, TrainingDiverged
from clusterucb_core.lm.checkpoints import read_checkpoint, read_history
from clusterucb_core.lm.lora import LoraSettings, ModelSettings
from clusterucb_core.records import TokenizedSample
from clusterucb_core.training import TrainingPlan, steps_per_epoch, train, train_on
from clusterucb_core.training.plan import learning_rate_factor, make_schedule, micro_batches

VOCABULARY = 40


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    made = []
    for number in range(10):
        ids = rng.integers(3, VOCABULARY, size=int(rng.integers(4, 20)))
        labels = np.where(np.arange(ids.size) < 2, -100, ids)
        made.append(TokenizedSample(f"s{number}", ids, labels))
    return made


def settings(folder, *, dropout: float = 0.0) -> ModelSettings:
    lora = LoraSettings(r=2, alpha=8, dropout=dropout, target_modules=("q_proj", "v_proj"))
    return ModelSettings(base=str(folder), max_length=64, lora=lora, dtype="float32")


def plan(**changes) -> TrainingPlan:
    return TrainingPlan(**({"learning_rate": 1e-2, "batch_size": 4, "total_steps": 12, "seed": 1} | changes))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors") | load_file(folder / "moments.safetensors")


def assert_same(first: Path, second: Path, tolerance: float) -> None:
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=tolerance, msg=f"{name} differs")


def test_training_lowers_the_loss_and_writes_one_checkpoint_an_epoch(model_folder, samples, tmp_path):
    made = train(settings(model_folder), samples, plan(epochs=4), start=None, out=tmp_path, device="cpu")
    assert [one.folder.name for one in made] == [f"checkpoint-{epoch}" for epoch in (1, 2, 3, 4)]
    assert [(one.step, one.epoch, one.total_steps) for one in made] == [
        (3, 1, 12),
        (6, 2, 12),
        (9, 3, 12),
        (12, 4, 12),
    ]
    assert [read_checkpoint(one.folder) for one in made] == made
    losses = [np.mean([step.loss for step in read_history(one.folder)]) for one in made]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_taken_up_again_equals_training_in_one_go(model_folder, samples, tmp_path, dropout):
    chosen = settings(model_folder, dropout=dropout)
    train(chosen, samples, plan(steps=5), start=None, out=tmp_path / "whole", device="cpu")
    (first,) = train(chosen, samples, plan(steps=2), start=None, out=tmp_path / "a", device="cpu")
    (second,) = train(
        chosen, samples, plan(steps=3, start_step=2), start=first.folder, out=tmp_path / "b", device="cpu"
    )
    assert second.step == 5
    assert_same(tmp_path / "whole" / "checkpoint-1", second.folder, 1e-6)


def test_epochs_taken_up_again_equal_epochs_in_one_go(model_folder, samples, tmp_path):
    chosen = settings(model_folder)
    whole = train(chosen, samples, plan(epochs=2), start=None, out=tmp_path / "whole", device="cpu")
    (first,) = train(chosen, samples, plan(epochs=1), start=None, out=tmp_path / "a", device="cpu")
    (second,) = train(
        chosen, samples, plan(epochs=1, start_step=3), start=first.folder, out=tmp_path / "b", device="cpu"
    )
    assert_same(whole[1].folder, second.folder, 1e-6)
    assert second.mean_learning_rate == pytest.approx(whole[1].mean_learning_rate)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("done", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_training_that_was_cut_short_ends_with_the_bytes_of_one_go(
    model_folder, samples, tmp_path, done, dropout
):
    chosen, whole, cut = settings(model_folder, dropout=dropout), tmp_path / "whole", tmp_path / "cut"
    train(chosen, samples, plan(epochs=3), start=None, out=whole, device="cpu")
    for epoch in range(1, done + 1):
        shutil.copytree(whole / f"checkpoint-{epoch}", cut / f"checkpoint-{epoch}")
    kept = {path: path.stat().st_mtime_ns for path in cut.rglob("*.json")}
    made = train_on(chosen, samples, plan(epochs=3), start=None, out=cut, device="cpu")
    assert [one.epoch for one in made] == [1, 2, 3]
    assert contents(cut) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "moments.safetensors", "checkpoint.json"])
def test_training_goes_on_before_a_damaged_checkpoint(model_folder, samples, tmp_path, caplog, file):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    chosen = settings(model_folder)
    train(chosen, samples, plan(epochs=3), start=None, out=whole, device="cpu")
    shutil.copytree(whole, cut)
    damaged = cut / "checkpoint-2" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    train_on(chosen, samples, plan(epochs=3), start=None, out=cut, device="cpu")
    assert contents(cut) == contents(whole)
    assert "training goes on from the checkpoint before" in caplog.text


def test_a_training_whose_checkpoints_are_all_there_trains_nothing(model_folder, samples, tmp_path):
    wanted = plan(steps=2)
    made = train(settings(model_folder), samples, wanted, start=None, out=tmp_path, device="cpu")
    # without a model: it is not even loaded
    assert (
        train_on(settings(tmp_path / "gone"), samples, wanted, start=None, out=tmp_path, device="cpu") == made
    )


def test_micro_batches_change_nothing_but_rounding(model_folder, samples, tmp_path):
    for name, tokens in (("one", 1), ("all", 10_000)):
        fast = plan(steps=4, micro_batch_tokens=tokens)
        train(settings(model_folder), samples, fast, start=None, out=tmp_path / name, device="cpu")
    # A difference of the order of 1e-3 would come from a mean over micro batches instead of over tokens.
    assert_same(tmp_path / "one" / "checkpoint-1", tmp_path / "all" / "checkpoint-1", 1e-5)


def test_training_agrees_with_a_plain_loop(model_folder, samples, tmp_path):
    from transformers import get_linear_schedule_with_warmup

    from clusterucb_core.lm.lora import new_adapter

    fixed = plan(steps=4, total_steps=40, warmup_share=0.05)
    (made,) = train(settings(model_folder), samples, fixed, start=None, out=tmp_path, device="cpu")
    model = new_adapter(settings(model_folder), "cpu", 1)
    weights = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 40)
    for batch in make_schedule(fixed, len(samples)).batches:
        total = sum((samples[index].labels[1:] != -100).sum() for index in batch)
        for index in batch:
            ids = torch.from_numpy(samples[index].input_ids)[None]
            loss = model(input_ids=ids, labels=torch.from_numpy(samples[index].labels)[None]).loss
            (loss * int((samples[index].labels[1:] != -100).sum()) / int(total)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    stored = tensors(made.folder)
    for name, value in model.named_parameters():
        if value.requires_grad:
            for kind in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(
                    stored[f"{kind}.{name}"], optimizer.state[value][kind], rtol=0, atol=1e-6
                )
            saved_name = name.replace(".default", "")
            torch.testing.assert_close(stored[saved_name], value.detach(), rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_bytes(model_folder, samples, tmp_path):
    for name in ("first", "again"):
        train(
            settings(model_folder, dropout=0.2),
            samples,
            plan(steps=3),
            start=None,
            out=tmp_path / name,
            device="cpu",
        )
    files = sorted(path.name for path in (tmp_path / "first" / "checkpoint-1").iterdir())
    assert len(files) == 4
    for file in files:
        first, again = (tmp_path / name / "checkpoint-1" / file for name in ("first", "again"))
        assert first.read_bytes() == again.read_bytes(), file


def test_training_leaves_the_global_generators_alone(model_folder, samples, tmp_path):
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    train(settings(model_folder, dropout=0.2), samples, plan(steps=1), start=None, out=tmp_path, device="cpu")
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state[1], np.random.get_state()[1])
    assert python_state == random.getstate()


def test_nothing_is_printed(model_folder, samples, tmp_path, capfd):
    train(settings(model_folder), samples, plan(steps=2), start=None, out=tmp_path, device="cpu")
    assert capfd.readouterr().out == ""


def test_mean_learning_rates_by_hand(model_folder, samples, tmp_path):
    # 10 steps, 2 of them warmup: factors 0, 1/2, 1, 7/8, 6/8, 5/8, ...; an epoch has 3 steps
    fixed = plan(epochs=2, total_steps=10, warmup_share=0.2, learning_rate=0.8)
    first, second = train(settings(model_folder), samples, fixed, start=None, out=tmp_path, device="cpu")
    assert first.mean_learning_rate == pytest.approx(0.8 * (0 + 0.5 + 1) / 3)
    assert second.mean_learning_rate == pytest.approx(0.8 * (7 + 6 + 5) / 8 / 3)
    assert [step.step for step in read_history(second.folder)] == [4, 5, 6]


def test_a_loss_that_is_not_finite_names_its_step(model_folder, samples, tmp_path):
    # The first step has learning rate 0, the second throws the weights away, the third finds it out.
    wild = plan(steps=4, learning_rate=1e37)
    with pytest.raises(
        TrainingDiverged, match=r"loss at optimiser step [34] is (nan|inf).*lower the learning rate"
    ):
        train(settings(model_folder), samples, wild, start=None, out=tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_training_on_nothing_is_refused(model_folder, samples, tmp_path):
    with pytest.raises(InvalidConfig, match="0 samples to train on"):
        train(settings(model_folder), [], plan(steps=1), start=None, out=tmp_path, device="cpu")
    silent = TokenizedSample("silent", np.array([1, 2]), np.array([1, -100]))
    with pytest.raises(InvalidConfig, match="sample silent has no supervised token"):
        train(
            settings(model_folder), [*samples, silent], plan(steps=1), start=None, out=tmp_path, device="cpu"
        )


def test_a_start_that_is_no_checkpoint_is_missing(model_folder, samples, tmp_path):
    with pytest.raises(MissingArtifact, match=r"checkpoint\.json is missing"):
        train(
            settings(model_folder), samples, plan(steps=1), start=tmp_path, out=tmp_path / "o", device="cpu"
        )


@pytest.mark.parametrize(
    "length", [{}, {"steps": 2, "epochs": 2}, {"steps": 0}, {"steps": 1, "micro_batch_tokens": 0}]
)
def test_a_plan_has_exactly_one_length(length):
    with pytest.raises(ValidationError):
        plan(**length)


def test_a_plan_past_its_schedule_is_refused():
    with pytest.raises(InvalidConfig, match="3 optimiser steps from step 10 run past total_steps=12"):
        make_schedule(plan(steps=3, start_step=10), 10)


@pytest.mark.parametrize(("n", "batch", "steps"), [(10, 4, 3), (8, 4, 2), (1, 4, 1), (9, 1, 9)])
def test_steps_of_an_epoch(n, batch, steps):
    assert steps_per_epoch(n, batch) == steps


def test_every_pass_covers_every_sample_once_in_its_own_order():
    schedule = make_schedule(plan(epochs=3, total_steps=99), 10)
    assert schedule.ends == [3, 6, 9]
    assert [batch.size for batch in schedule.batches] == [4, 4, 2] * 3
    passes = [np.concatenate(schedule.batches[at : at + 3]) for at in (0, 3, 6)]
    assert all(sorted(order.tolist()) == list(range(10)) for order in passes)
    assert len({tuple(order.tolist()) for order in passes}) == 3


def test_steps_cycle_through_passes_and_fit_together_wherever_they_are_cut():
    whole = make_schedule(plan(steps=8, total_steps=99), 10).batches
    parts = [
        make_schedule(plan(steps=n, start_step=at, total_steps=99), 10).batches
        for at, n in ((0, 2), (2, 5), (7, 1))
    ]
    for one, other in zip(whole, chain(*parts), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_learning_rate_follows_the_schedule_of_transformers():
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 50)
    fixed = plan(steps=1, total_steps=50)
    for step in range(50):
        assert learning_rate_factor(fixed, step) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_a_schedule_of_one_step_still_learns():
    assert learning_rate_factor(plan(steps=1, total_steps=1), 0) == 1.0


def test_micro_batches_by_hand():
    groups = micro_batches(np.array([3, 9, 4, 2, 20]), 10)
    assert [group.tolist() for group in groups] == [[4], [1], [2, 0], [3]]


@pytest.mark.slow
def test_a_real_model_learns_its_target(tmp_path):
    models = os.environ.get("CLUSTERUCB_MODELS")
    if not models:
        pytest.skip("CLUSTERUCB_MODELS is not set")
    from clusterucb_core.lm.chat import chat_format, tokenize
    from clusterucb_core.lm.lora import load_tokenizer
    from clusterucb_core.records import Message

    lora = LoraSettings(r=4, alpha=16, dropout=0.0)
    chosen = ModelSettings(base=str(Path(models) / "tiny-llama"), max_length=128, lora=lora)
    chat = chat_format(load_tokenizer(chosen), None)
    texts = [(f"What is {n} plus {n}?", f"The answer is {2 * n}.") for n in range(32)]
    tokens = [
        tokenize(chat, str(n), (Message("user", ask), Message("assistant", answer)), max_length=128)
        for n, (ask, answer) in enumerate(texts)
    ]
    fixed = TrainingPlan(learning_rate=1e-3, batch_size=8, total_steps=40, epochs=10)
    made = train(chosen, tokens, fixed, start=None, out=tmp_path, device="cpu")
    first, last = (np.mean([step.loss for step in read_history(made[at].folder)]) for at in (0, -1))
    assert last < 0.6 * first
