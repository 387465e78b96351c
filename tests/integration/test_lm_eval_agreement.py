"""lm-eval through our stage against lm-eval by hand, on the task files and the adapter that we wrote.

Outputs and log-likelihoods are the same to the last bit, row by row: on rows of GSM8K and BBH, and on a
generated task of which the adapter knows two thirds, so that the scores could differ.
"""

import gzip
import json
import os
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clusterucb_core.artifacts import find_artifact, new_artifact
from clusterucb_core.evaluation import EvaluateSettings
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.lm.chat import tokenize
from clusterucb_core.lm.checkpoints import StepRecord, save_checkpoint
from clusterucb_core.lm.lora import new_adapter
from clusterucb_core.lm.settings import LoraSettings, ModelSettings
from clusterucb_core.records import Message
from clusterucb_core.stages.evaluation import evaluation_spec, read_results, read_samples_of, run_evaluation
from clusterucb_core.stages.intake import TokensSpec, run_target, run_tokens, target_spec
from clusterucb_core.stages.models import CheckpointRef, open_chat, resolve_model
from clusterucb_core.targets.catalog import TargetSettings
from clusterucb_core.workspace import Workspace

DATA, MODELS = os.environ.get("CLUSTERUCB_DATA"), os.environ.get("CLUSTERUCB_MODELS")
BY_HAND = Path(__file__).with_name("lm_eval_by_hand.py")
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
LETTERS = string.ascii_lowercase[:24]
KNOWN, LEARNT, UNKNOWN = LETTERS[:8], LETTERS[8:16], LETTERS[16:]

pytestmark = pytest.mark.slow
needs_data = pytest.mark.skipif(
    DATA is None or MODELS is None,
    reason="CLUSTERUCB_DATA and CLUSTERUCB_MODELS name no folders with the targets and the tiny Llama",
)


class Agreement:
    """One evaluation by our stage, and the same by hand."""

    def __init__(self, model, checkpoint, rows, folder, *, name):
        path = folder / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        workspace = Workspace(home=str(folder / "home"))
        files = TargetSettings(name=name, validation="rows.jsonl", test="rows.jsonl")
        target = run_target(target_spec(files, folder), workspace)
        tokens = run_tokens(TokensSpec(source=target, split="test", model=model), workspace)
        settings = EvaluateSettings(tasks=("target", "target_perplexity"), batch_size=8)
        spec = evaluation_spec(
            settings, model, checkpoint=checkpoint, target=target, test_tokens=tokens, seed=0
        )
        execution = ExecutionSettings(device="cpu")
        self.ref = run_evaluation(spec, workspace, execution, settings)
        self.tasks = Path(self.ref.path) / "tasks"
        self.hand = self._by_hand(model.settings.base, checkpoint, folder)

    def _by_hand(self, base, checkpoint, folder):
        adapter = Path(checkpoint.training.path) / f"checkpoint-{checkpoint.index}"
        names = sorted(path.stem for path in self.tasks.glob("*.yaml"))
        line = [sys.executable, str(BY_HAND), base, str(adapter), *names]
        here = str(Path(__file__).parents[2])
        environment = os.environ | {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": here}
        done = subprocess.run(
            line, cwd=self.tasks, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    def ours(self, task):
        return [sample for sample in read_samples_of(self.ref) if sample["task"] == task]

    def assert_same(self, *tasks):
        assert set(tasks) == set(self.hand["samples"])
        for task in tasks:
            theirs = sorted(self.hand["samples"][task], key=lambda sample: sample["row"])
            kept = ("row", "responses", "answers")
            assert [{key: sample[key] for key in kept} for sample in self.ours(task)] == theirs
        results = {(r.task, r.metric): r.value for r in read_results(self.ref, "") if r.metric != "loss"}
        assert {task for task, _ in results} == set(tasks)
        for (task, metric), value in results.items():
            (theirs,) = [v for key, v in self.hand["results"][task].items() if key.startswith(f"{metric},")]
            assert value == theirs


def train(model, samples, steps, *, learning_rate):
    """Train on all samples in every step, and return the optimiser."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    width = max(len(sample.input_ids) for sample in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    labels = torch.full((len(samples), width), -100)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.input_ids)] = torch.from_numpy(sample.input_ids)
        labels[row, : len(sample.labels)] = torch.from_numpy(sample.labels)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
    return optimizer


def adapter_of(model, samples, folder, *, steps):
    """Train an adapter of a model and save it as a training does."""
    adapted = new_adapter(model.settings, "cpu", 0)
    optimizer = train(adapted, samples, steps, learning_rate=1e-2)
    history = [StepRecord(step=steps, learning_rate=1e-2, loss=1.0)]
    with new_artifact(folder, "training", "t", {}) as draft:
        path = draft / "checkpoint-1"
        save_checkpoint(path, adapted, optimizer, epoch=1, total_steps=steps, history=history)
    return CheckpointRef(training=find_artifact(folder, "training", "t"), index=1)


def tokenized(model, pairs):
    chat = open_chat(model)
    turns = [(Message("user", prompt), Message("assistant", answer)) for prompt, answer in pairs]
    return [tokenize(chat, str(i), messages, max_length=128) for i, messages in enumerate(turns)]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """The next letter: a model that knows a third of them, and an adapter that teaches it another third."""
    folder = tmp_path_factory.mktemp("letters")
    base = folder / "base"
    write_letter_model(base)
    lora = LoraSettings(
        r=8, alpha=16, dropout=0.0, target_modules=("q_proj", "v_proj", "up_proj", "down_proj")
    )
    settings = ModelSettings(base=str(base), max_length=32, lora=lora, chat_template=PLAIN_TEMPLATE)
    whole = LlamaForCausalLM.from_pretrained(base)
    train(whole, tokenized(resolve_model(settings, "cpu"), following(KNOWN)), 150, learning_rate=5e-3)
    whole.save_pretrained(base)
    model = resolve_model(settings, "cpu")
    checkpoint = adapter_of(
        model, tokenized(model, following(KNOWN + LEARNT)), folder / "training", steps=150
    )
    rows = [
        {"split": "test", "prompt": prompt, "completion": answer} for prompt, answer in following(LETTERS)
    ]
    return Agreement(model, checkpoint, [*rows, VALIDATION], folder, name="letters")


VALIDATION = {"split": "validation", "prompt": "none", "completion": "z"}


def following(letters):
    return [(f"{letter}:", chr(ord(letter) + 1)) for letter in letters]


def write_letter_model(folder):
    """Write a random Llama whose tokens are letters."""
    words = ["<pad>", "</s>", "<unk>", ":", *string.ascii_lowercase]
    bare = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    bare.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=1,
            pad_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def target_rows(name, wanted):
    """Return a test row of each of eight subtasks of a real target that is wanted, and a validation row."""
    with gzip.open(Path(DATA) / "targets" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    taken = {}
    for row in rows:
        if row["split"] == "test" and wanted(row):
            taken.setdefault(row["subtask"], row)
    return [*list(taken.values())[:8], next(row for row in rows if row["split"] == "validation")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The tiny Llama and an adapter that a few steps have moved."""
    lora = LoraSettings(r=4, alpha=16, dropout=0.0)
    model = resolve_model(
        ModelSettings(base=str(Path(MODELS) / "tiny-llama"), max_length=512, lora=lora), "cpu"
    )
    samples = tokenized(model, [("What is 2 + 2?", "It is 4.\n#### 4"), ("Is the sky blue?", "yes")])
    return model, adapter_of(model, samples, tmp_path_factory.mktemp("training"), steps=3)


def test_a_generated_task_has_the_score_that_the_adapter_learnt(letters):
    (score,) = [r.value for r in read_results(letters.ref, "") if r.metric == "exact_match"]
    assert 0.2 < score < 0.8, "a score that any model would have could not differ"
    letters.assert_same("letters_generate", "letters_perplexity")
    right = [
        row for row, sample in enumerate(letters.ours("letters_generate")) if sample["scores"]["exact_match"]
    ]
    assert set(range(16)) <= set(right)


@needs_data
def test_rows_of_gsm8k_have_the_same_outputs_and_log_likelihoods(llama, tmp_path):
    with gzip.open(Path(DATA) / "targets" / "gsm8k.jsonl.gz", "rt", encoding="utf-8") as file:
        every = [json.loads(line) for line in file]
    rows = [row for row in every if row["split"] == "test"][:4]
    rows.append(next(row for row in every if row["split"] == "validation"))
    found = Agreement(*llama, rows, tmp_path, name="gsm8k")
    found.assert_same("gsm8k_generate", "gsm8k_perplexity")
    texts = [sample["responses"][0][0] for sample in found.ours("gsm8k_generate")]
    assert len(set(texts)) == 4, "the adapter must not make every answer the same"


@needs_data
def test_rows_of_bbh_have_the_same_outputs_and_log_likelihoods(llama, tmp_path):
    chosen = target_rows("bbh", lambda row: row.get("choices"))
    generated = target_rows("bbh", lambda row: not row.get("choices"))[:4]
    found = Agreement(*llama, [*chosen, *generated], tmp_path, name="bbh")
    found.assert_same("bbh_choice", "bbh_generate", "bbh_perplexity")
    likelihoods = [value for s in found.ours("bbh_choice") for ((value, _),) in s["responses"]]
    assert len(set(likelihoods)) == len(likelihoods) > 16
