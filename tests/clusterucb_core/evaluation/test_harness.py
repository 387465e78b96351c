import copy
import math
import random
import socket

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.evaluation import check_task_names, evaluate_tasks, write_task_files
from clusterucb_core.records import Message, Target, TargetRow

QUESTIONS = [f"{a} + {b} = ?" for a in range(6) for b in (2, 5)]
CHOICES = (" one", "two", "(C)", "2024.05.06", "a much longer answer")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args):
        raise AssertionError("the evaluation opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def choice_folder(tmp_path):
    rows = [_row(i, q, CHOICES[i % 5], CHOICES, i % 5) for i, q in enumerate(QUESTIONS)]
    write_task_files(Target("sums", (), tuple(rows)), tmp_path, render=_render)
    return tmp_path


def _row(number, prompt, gold, choices=(), answer_index=None):
    turns = (Message("user", prompt), Message("assistant", gold))
    return TargetRow(f"r{number}", "s", turns, tuple(choices), answer_index)


def _render(messages):
    return "".join(m.content for m in messages)


def _evaluate(model, tokenizer, folder, names=("target",), **settings):
    options = {"batch_size": 4, "limit": None, "subject": "selection", "seed": 0} | settings
    results = evaluate_tasks(model, tokenizer, list(names), include_path=folder, **options)
    return {(r.task, r.metric): r for r in results}


def _log_likelihood(model, tokenizer, prompt, choice):
    ids = torch.tensor([tokenizer(prompt + choice)["input_ids"]])
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
    first = len(tokenizer(prompt)["input_ids"])
    return sum(log_p[t - 1, ids[0, t]].item() for t in range(first, ids.shape[1]))


def test_multiple_choice_agrees_with_our_own_log_likelihoods(model, tokenizer, choice_folder):
    scores = np.array([[_log_likelihood(model, tokenizer, q, c) for c in CHOICES] for q in QUESTIONS])
    lengths = np.array([len(c) for c in CHOICES])
    gold = np.arange(len(QUESTIONS)) % 5
    results = _evaluate(model, tokenizer, choice_folder)
    hits = scores.argmax(axis=1) == gold
    norm_hits = (scores / lengths).argmax(axis=1) == gold
    assert 0 < norm_hits.mean() < 1, "the model must not be all right or all wrong for this test"
    assert results["sums_choice", "acc"].value == pytest.approx(hits.mean())
    assert results["sums_choice", "acc_norm"].value == pytest.approx(norm_hits.mean())


def test_the_interval_is_1_96_standard_errors_within_0_and_1(model, tokenizer, choice_folder):
    result = _evaluate(model, tokenizer, choice_folder)["sums_choice", "acc_norm"]
    error = 1.96 * math.sqrt(result.value * (1 - result.value) / (result.n - 1))
    assert result.subject == "selection"
    assert result.n == len(QUESTIONS)
    assert (result.low, result.high) == pytest.approx(
        (max(0, result.value - error), min(1, result.value + error))
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_model_with_new_adapters_scores_like_its_base(model, tokenizer, choice_folder):
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"]))
    assert _evaluate(adapted, tokenizer, choice_folder) == _evaluate(model, tokenizer, choice_folder)


def test_batch_size_and_repetition_change_nothing(model, tokenizer, choice_folder):
    first = _evaluate(model, tokenizer, choice_folder, batch_size=1)
    assert _evaluate(model, tokenizer, choice_folder, batch_size="auto") == first


def test_a_limit_evaluates_the_first_rows(model, tokenizer, choice_folder):
    results = _evaluate(model, tokenizer, choice_folder, ["sums_choice"], limit=1)
    result = results["sums_choice", "acc"]
    assert result.n == 1
    assert (result.low, result.high) == (0.0, 1.0)


def test_a_generated_answer_is_compared_after_its_pattern(chain_model, tokenizer, tmp_path):
    (tmp_path / "sums.yaml").write_text(
        "answer: {kind: generation, regex: '=([0-9,]+)', ignore: [','], max_new_tokens: 6}", encoding="utf-8"
    )
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        _row(1, "a:", "b =4,2"),
        _row(2, "longer text:", "=42"),
        _row(3, "c:", "=43"),
        _row(4, "?", "=42"),
    ]
    names = write_task_files(Target("sums", (), tuple(rows)), folder, render=_render, bundled=tmp_path)
    results = _evaluate(chain_model, tokenizer, folder, names)
    assert results["sums_generate", "exact_match"].value == 0.5


def test_a_whole_answer_that_looks_like_a_date_is_compared_as_text(chain_model, tokenizer, tmp_path):
    rows = [_row(1, "a:", "=42"), _row(2, "b:", "2024-05-06")]
    write_task_files(Target("dates", (), tuple(rows)), tmp_path, render=_render)
    assert _evaluate(chain_model, tokenizer, tmp_path)["dates_generate", "exact_match"].value == 0.5


def test_more_tokens_than_the_model_can_hold_are_cut_to_half_its_length(chain_model, tokenizer, tmp_path):
    assert chain_model.config.max_position_embeddings < 512
    write_task_files(Target("gsm8k", (), (_row(1, "?", "#### 1"),)), tmp_path, render=_render)
    assert _evaluate(chain_model, tokenizer, tmp_path)["gsm8k_generate", "exact_match"].value == 0.0


def test_model_tokenizer_and_global_generators_are_left_as_they_were(model, tokenizer, choice_folder, capsys):
    model.train()
    side, pad = tokenizer.padding_side, tokenizer.pad_token
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    _evaluate(model, tokenizer, choice_folder)
    assert model.training
    assert (tokenizer.padding_side, tokenizer.pad_token) == (side, pad)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert capsys.readouterr().out == ""
    model.eval()


def test_no_task_needs_no_model():
    assert (
        evaluate_tasks(None, None, [], include_path=None, batch_size=1, limit=None, subject="s", seed=0) == []
    )


def test_the_target_and_its_own_tasks_are_known_names():
    assert check_task_names(["target", "sums_choice"], ["sums_choice"]) is None


@pytest.mark.slow
def test_an_unknown_task_lists_near_matches(model, tokenizer, choice_folder):
    with pytest.raises(InvalidConfig, match=r"unknown task 'sums_choise'; did you mean sums_choice"):
        _evaluate(model, tokenizer, choice_folder, ["sums_choise"])
    with pytest.raises(InvalidConfig, match=r"unknown task 'arc_eazy'; did you mean (.*, )?arc_easy"):
        check_task_names(["arc_easy", "arc_eazy"])
