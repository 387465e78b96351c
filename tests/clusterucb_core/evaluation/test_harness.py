import copy
import math
import random
import socket

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import binomtest

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.evaluation import (
    evaluate_tasks,
    reach_of,
    write_perplexity_task,
    write_task_files,
)
from clusterucb_core.records import CodeTest, Message, Target, TargetRow

QUESTIONS = [f"{a} + {b} = ?" for a in range(6) for b in (2, 5)]
CHOICES = (" one", "two", "(C)", "2024.05.06", "a much longer answer")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args):
        raise AssertionError("the evaluation opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def choice_folder(tmp_path, rendering):
    rows = [_row(i, q, CHOICES[i % 5], CHOICES, i % 5) for i, q in enumerate(QUESTIONS)]
    write_task_files(Target("sums", (), tuple(rows)), tmp_path, rendering=rendering)
    return tmp_path


def _row(number, prompt, gold, choices=(), answer_index=None):
    turns = (Message("user", prompt), Message("assistant", gold))
    return TargetRow(f"r{number}", "s", turns, tuple(choices), answer_index)


def _evaluate(model, tokenizer, folder, names=("target",), **settings):
    options = {"batch_size": 4, "limit": None, "subject": "selection", "seed": 0} | settings
    report = evaluate_tasks(model, tokenizer, list(names), include_path=folder, **options)
    return {(r.task, r.metric): r for r in report.results}


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


def test_a_share_has_the_interval_of_wilson(model, tokenizer, choice_folder):
    result = _evaluate(model, tokenizer, choice_folder)["sums_choice", "acc_norm"]
    hits = round(result.value * result.n)
    assert (result.subject, result.n) == ("selection", len(QUESTIONS))
    expected = binomtest(hits, result.n).proportion_ci(0.95, method="wilson")
    assert (result.low, result.high) == pytest.approx(tuple(expected), abs=1e-4)


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
    assert result.high - result.low > 0.7


def test_a_generated_answer_is_compared_after_its_pattern(chain_model, tokenizer, tmp_path, rendering):
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
    target = Target("sums", (), tuple(rows))
    names = write_task_files(target, folder, rendering=rendering, bundled=tmp_path)
    results = _evaluate(chain_model, tokenizer, folder, names)
    assert results["sums_generate", "exact_match"].value == 0.5


def test_a_whole_answer_that_looks_like_a_date_is_text(chain_model, tokenizer, tmp_path, rendering):
    rows = [_row(1, "a:", "=42"), _row(2, "b:", "2024-05-06")]
    write_task_files(Target("dates", (), tuple(rows)), tmp_path, rendering=rendering)
    assert _evaluate(chain_model, tokenizer, tmp_path)["dates_generate", "exact_match"].value == 0.5


def test_an_answer_without_an_end_is_cut_to_half_of_the_length(chain_model, tokenizer, tmp_path, rendering):
    assert chain_model.config.max_position_embeddings < 512
    write_task_files(Target("gsm8k", (), (_row(1, "?", "#### 1"),)), tmp_path, rendering=rendering)
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


def test_perplexity_weighs_every_token_the_same(model, tokenizer, tmp_path, rendering):
    questions = [f"{question}{' ' * (i % 3)}" for i, question in enumerate(QUESTIONS)]
    rows = [_row(i, q, CHOICES[i % 5]) for i, q in enumerate(questions)]
    name = write_perplexity_task(Target("sums", (), tuple(rows)), tmp_path, rendering=rendering)
    report = evaluate_tasks(
        model, tokenizer, [name], include_path=tmp_path, batch_size=4, limit=None, subject="s", seed=0
    )
    answers = [f"{CHOICES[i % 5]}</s>" for i in range(len(QUESTIONS))]
    logs = [_log_likelihood(model, tokenizer, q, a) for q, a in zip(questions, answers, strict=True)]
    n_tokens = sum(len(tokenizer(answer)["input_ids"]) for answer in answers)
    (result,) = report.results
    assert (result.task, result.metric, result.n) == ("sums_perplexity", "perplexity", len(rows))
    assert result.value == pytest.approx(math.exp(-sum(logs) / n_tokens))
    assert result.low < result.value < result.high
    (scores,) = report.scores
    assert (scores.metric, scores.higher_is_better) == ("log_perplexity", False)
    assert scores.values.mean() == pytest.approx(math.log(result.value))


def test_every_row_keeps_what_the_model_said_and_its_scores(chain_model, tokenizer, tmp_path, rendering):
    rows = [_row(1, "a:", "=42"), _row(2, "b:", "no")]
    write_task_files(Target("sums", (), tuple(rows)), tmp_path, rendering=rendering)
    report = evaluate_tasks(
        chain_model,
        tokenizer,
        ["target"],
        include_path=tmp_path,
        batch_size=2,
        limit=None,
        subject="s",
        seed=0,
    )
    assert [(s["row_id"], s["responses"], s["scores"]) for s in report.samples] == [
        ("r1", [["=42"]], {"exact_match": 1.0}),
        ("r2", [["=42"]], {"exact_match": 0.0}),
    ]
    (scores,) = report.scores
    assert (scores.task, scores.metric, scores.higher_is_better) == ("sums_generate", "exact_match", True)
    assert (scores.rows.tolist(), scores.values.tolist()) == ([0, 1], [1.0, 0.0])


def _code_folder(folder, rendering):
    """Rows whose program is a text that the model goes on with, and a test that it says =42."""
    test = CodeTest("text", '"""\ndef check(text):\n    assert text.strip() == ":=42"')
    turns = [(Message("user", f'text = """{end}'), Message("assistant", "=42")) for end in (":", "?")]
    rows = [TargetRow(f"r{i}", "s", messages, code=test) for i, messages in enumerate(turns)]
    assert write_task_files(Target("mine", (), tuple(rows)), folder, rendering=rendering, run_code=True)
    return folder


def test_the_code_of_an_answer_is_run_in_the_sandbox(chain_model, tokenizer, tmp_path, rendering):
    report = evaluate_tasks(
        chain_model,
        tokenizer,
        ["mine_code"],
        include_path=_code_folder(tmp_path, rendering),
        batch_size=2,
        limit=None,
        subject="s",
        seed=0,
        run_code=True,
    )
    assert [sample["answers"] for sample in report.samples] == [["passed"], ["AssertionError"]]
    (result,) = report.results
    assert (result.metric, result.value, result.n) == ("pass@1", 0.5, 2)
    assert 0.0 < result.low < 0.1 < 0.9 < result.high < 1.0


def test_code_is_not_run_without_leave(chain_model, tokenizer, tmp_path, rendering):
    with pytest.raises(InvalidConfig, match=r"'mine_code' runs code .*allow_code_execution=true"):
        _evaluate(chain_model, tokenizer, _code_folder(tmp_path, rendering), ["mine_code"])


def test_the_reach_is_that_of_lm_eval(model, tokenizer):
    reach = reach_of(model, tokenizer)
    assert reach.max_length == model.config.max_position_embeddings == 64
    before, after = reach.encode("1 + 1 = ", "2</s>")
    assert tokenizer.decode(before) == "1 + 1 ="
    assert tokenizer.decode(after) == " 2</s>", "lm-eval moves a blank at the end to what follows"


def test_no_task_needs_no_model():
    report = evaluate_tasks(None, None, [], include_path=None, batch_size=1, limit=None, subject="s", seed=0)
    assert (report.results, report.scores, report.samples) == ([], [], [])


@pytest.mark.slow
def test_an_unknown_task_lists_near_matches(model, tokenizer, choice_folder):
    with pytest.raises(InvalidConfig, match=r"unknown task 'sums_choise'; did you mean sums_choice"):
        _evaluate(model, tokenizer, choice_folder, ["sums_choise"])


@pytest.mark.slow
def test_a_shipped_task_without_its_data_says_so(model, tokenizer, tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InvalidConfig, match=r"a task of arc_easy cannot be loaded \(.*hub"):
        _evaluate(model, tokenizer, None, ["arc_easy"])
