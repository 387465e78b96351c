"""Exports as `datasets` and TRL's SFT trainer read them, in a process where every warning is an error."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clusterucb_core.demo.tiny_model import TinyModelRecipe, write_tiny_model
from clusterucb_core.export import ExportOptions, export_selection
from clusterucb_core.lm.chat import Tokenized, chat_format, tokenize_batch
from clusterucb_core.records import Message

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
PLACES = {
    "jsonl": "out.jsonl",
    "parquet": "table.parquet",
    "alpaca": "alpaca.json",
    "sharegpt": "sharegpt.json",
    "datasets": "folder",
}
NO_REGISTRY = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError"
)
# The plain template of the project, with the marks by which transformers tells the assistant's tokens.
TRAINING_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    spoken = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *spoken] if system else spoken


CONVERSATIONS = [
    turns("How many metres are 3 km?", "3000 metres."),
    turns("What is 2 + 2?", "4", "and + 1?", "It is 5.\n\nNo more."),
    turns("Sort 3, 1, 2.", "1, 2, 3", system="Be brief."),
    turns('quote " and \\ \u2028 漢字 🙂', 'answer " 漢字'),
]


@pytest.fixture
def exports(catalog, tmp_path) -> dict[str, Path]:
    """The conversations in every format, with all the columns that there can be."""
    path = catalog(*CONVERSATIONS)
    options = ExportOptions(provenance=True, weights=True, trainers=("llama-factory",))
    places = {shape: tmp_path / "exports" / name for shape, name in PLACES.items()}
    for shape, out in places.items():
        export_selection(path, 1, out, format=shape, options=options)
    return places


def result_of(script: str, folder: Path, *arguments: object, packages: str = "") -> Any:
    """Run a script without a network and with warnings as errors; it prints one JSON value and no message."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (packages, str(ROOT)))),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    line = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    return json.loads(done.stdout)


LOADING = """
import json, sys
from datasets import load_dataset

places = json.loads(sys.argv[1])
found = {}
for shape, path in places.items():
    kind = {"parquet": "parquet", "datasets": None}.get(shape, "json")
    data = load_dataset(kind, data_files=path) if kind else load_dataset(path)
    assert list(data) == ["train"], data
    found[shape] = {"rows": data["train"].to_list(), "features": str(data["train"].features)}
print(json.dumps(found))
"""


def test_datasets_loads_every_format_without_a_warning(exports, tmp_path):
    found = result_of(LOADING, tmp_path, json.dumps({shape: str(path) for shape, path in exports.items()}))
    for shape in ("jsonl", "parquet", "datasets"):
        assert [row["messages"] for row in found[shape]["rows"]] == CONVERSATIONS
        assert "Large" not in found[shape]["features"]
    assert [row["system"] for row in found["sharegpt"]["rows"]] == [None, None, "Be brief.", None]
    assert [row["output"] for row in found["alpaca"]["rows"]] == [c[-1]["content"] for c in CONVERSATIONS]
    assert found["alpaca"]["rows"][1]["history"] == [["What is 2 + 2?", "4"]]
    for shape in exports:
        assert [row["sample_id"] for row in found[shape]["rows"]] == ["id9", "id8", "id7", "id6"]
        assert [row["weight"] for row in found[shape]["rows"]] == pytest.approx([1.92, 0.96, 0.64, 0.48])


@pytest.fixture(scope="session")
def trl_packages(tmp_path_factory) -> str:
    """A folder that holds TRL as the lock has it, beside the installed packages and not among them."""
    lock = ROOT / "requirements-trl.lock"
    if importlib.util.find_spec("trl") is not None:
        return ""
    folder = tmp_path_factory.mktemp("trl")
    line = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(folder),
        "-r",
        str(lock),
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0 and NO_REGISTRY.search(done.stderr):
        pytest.skip(f"TRL is not installed and no package registry can be reached: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    recipe = TinyModelRecipe(vocabulary=400, hidden=16, layers=1, heads=2, steps=2, batch_samples=64)
    write_tiny_model(folder, seed=0, recipe=recipe)
    return folder


PREPARING = """
import json, sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, logging
from trl import SFTConfig, SFTTrainer

logging.disable_progress_bar()
folder, template, places = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
tokenizer.chat_template = template
model = AutoModelForCausalLM.from_pretrained(folder)
# TRL's own default of gradient_checkpointing is one that this version of transformers warns of.
config = SFTConfig(
    output_dir="out", assistant_only_loss=True, max_length=256, use_cpu=True, report_to=[], disable_tqdm=True,
    per_device_train_batch_size=2, gradient_checkpointing=None,
)
found = {}
for shape, path in places.items():
    kind = {"jsonl": "json", "parquet": "parquet", "datasets": None}[shape]
    data = load_dataset(kind, data_files=path) if kind else load_dataset(path)
    trainer = SFTTrainer(model, config, train_dataset=data["train"], processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    found[shape] = {"rows": trainer.train_dataset.to_list(), "batch": sorted(batch)}
print(json.dumps(found))
"""


def test_trl_prepares_the_tokens_and_the_loss_that_the_project_takes(
    exports, tiny_model, trl_packages, tmp_path
):
    places = {shape: str(exports[shape]) for shape in ("jsonl", "parquet", "datasets")}
    arguments = (tiny_model, TRAINING_TEMPLATE, json.dumps(places))
    found = result_of(PREPARING, tmp_path, *arguments, packages=trl_packages)
    ours = tokens_of(CONVERSATIONS, tiny_model)
    for shape in places:
        rows = found[shape]["rows"]
        assert len(rows) == len(ours) == len(CONVERSATIONS)
        for theirs, sample in zip(rows, ours, strict=True):
            # what follows the last answer carries no loss, and the project leaves it out
            end = len(sample.input_ids)
            assert theirs["input_ids"][:end] == sample.input_ids.tolist()
            assert theirs["labels"][:end] == sample.labels.tolist()
            assert set(theirs["labels"][end:]) <= {-100}
            assert len(theirs["input_ids"]) - end <= 1
        assert {"input_ids", "labels"} <= set(found[shape]["batch"])


def tokens_of(conversations: list[list[dict[str, str]]], model: Path) -> list[Any]:
    from transformers import AutoTokenizer

    chat = chat_format(AutoTokenizer.from_pretrained(model), None)
    pairs = [("", [Message(**turn) for turn in found]) for found in conversations]
    outcomes = tokenize_batch(chat, pairs, max_length=256)
    assert all(isinstance(outcome, Tokenized) for outcome in outcomes)
    return [outcome.sample for outcome in outcomes]
