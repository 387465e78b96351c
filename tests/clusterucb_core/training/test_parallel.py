"""A training shared by two processes is the training of one, up to rounding."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clusterucb_core.errors import InvalidModel, TrainingFailed
from clusterucb_core.lm.checkpoints import read_history
from clusterucb_core.lm.lora import LoraSettings, ModelSettings
from clusterucb_core.records import TokenizedSample
from clusterucb_core.training import TrainingPlan, train
from clusterucb_core.training.parallel import TrainingTask, train_in_processes

VOCABULARY = 40
PLAN = TrainingPlan(learning_rate=1e-2, batch_size=5, total_steps=6, epochs=2, micro_batch_tokens=40, seed=1)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
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
    lora = LoraSettings(r=2, alpha=8, dropout=0.1, target_modules=("q_proj", "v_proj"))
    return ModelSettings(base=str(folder), max_length=64, lora=lora, dtype="float32")


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    # 11 samples in steps of 5, 5 and 1: the last step has nothing for the second process
    drawn = [rng.integers(3, VOCABULARY, size=int(rng.integers(4, 30))) for _ in range(11)]
    return [
        TokenizedSample(f"s{i}", ids, np.where(np.arange(ids.size) < 2, -100, ids))
        for i, ids in enumerate(drawn)
    ]


def test_two_processes_leave_the_checkpoints_of_one(settings, samples, tmp_path):
    alone = train(settings, samples, PLAN, start=None, out=tmp_path / "alone", device="cpu")
    shared = train(settings, samples, PLAN, start=None, out=tmp_path / "two", device="cpu", processes=2)
    assert [item.step for item in shared] == [item.step for item in alone] == [3, 6]
    for one, two in zip(alone, shared, strict=True):
        for file in ("adapter_model.safetensors", "moments.safetensors"):
            expected, found = load_file(one.folder / file), load_file(two.folder / file)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=f"{file}: {name}")
        losses = [[record.loss for record in read_history(item.folder)] for item in (one, two)]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_the_progress_of_the_first_process_is_logged_by_the_one_that_waits(
    settings, samples, tmp_path, caplog
):
    with caplog.at_level(logging.INFO, "clusterucb_core.training.parallel"):
        train(settings, samples, PLAN, start=None, out=tmp_path / "out", device="cpu", processes=2)
    told = [record.getMessage() for record in caplog.records if record.name.endswith("parallel")]
    steps = [text.split(";")[0] for text in told if "checkpoint" in text]
    assert steps == [f"training: checkpoint at optimiser step {step} of 6" for step in (3, 6)]


def test_an_error_of_a_process_is_raised_as_it_was(settings, samples, tmp_path):
    wrong = settings.model_copy(update={"base": str(tmp_path / "gone")})
    with pytest.raises(InvalidModel, match="gone"):
        train(wrong, samples, PLAN, start=None, out=tmp_path / "out", device="cpu", processes=2)


def test_a_process_that_ends_without_a_word_fails_the_training(settings, samples, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    task = TrainingTask(settings=settings, plan=PLAN, start=None, out=blocked / "out", device="cpu")
    with pytest.raises(TrainingFailed, match="NotADirectoryError"):
        train_in_processes(task, samples, processes=2)


def test_the_processes_end_once_whoever_started_them_is_gone(tmp_path):
    waiting = tmp_path / "waiting.py"
    waiting.write_text("print('begun', flush=True)\nimport time; time.sleep(600)\n", encoding="utf-8")
    line = [sys.executable, "-m", "clusterucb_core.training.launch", "--standalone", "--nproc-per-node=1"]
    with subprocess.Popen(
        [*line, str(waiting)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as launched:
        assert launched.stdin is not None
        assert launched.stdout is not None
        assert launched.stdout.readline() == b"begun\n"
        launched.stdin.close()  # as when the process at its other end is killed
        assert launched.wait(60) != 0
        assert launched.stdout.read() == b""  # closed by the last process that could write to it
