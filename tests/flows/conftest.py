"""The command line in this process, a catalog with two selections, and a configuration with a tiny model."""

import json
import os
from dataclasses import dataclass

import polars as pl
import pytest
import yaml

HOSTILE = "[bold red]not markup[/bold red] :smile: \x1b[2Jcleared \u202egnp"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A state folder of the test's own; what the command line sets in the environment is undone."""
    before = dict(os.environ)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLUSTERUCB_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def call(capsys):
    """Run `clusterucb` with the given arguments."""
    from flows.cli import main

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def catalog(home, tmp_path):
    """Two versions over a pool of twelve samples: `show` has something of everything to tell."""
    from clusterucb_core.store import (
        ComparisonRow,
        EvaluationRow,
        open_catalog,
        publish_selections,
        record_comparisons,
        record_evaluations,
        record_pool,
    )

    path = home / "catalog.duckdb"
    samples, quarantine = tmp_path / "samples.parquet", tmp_path / "quarantine.parquet"
    _pool_frame().write_parquet(samples)
    columns = ("source", "row_number", "reason", "detail", "raw")
    kinds = {name: pl.Int64 if name == "row_number" else pl.String for name in columns}
    pl.DataFrame(schema=kinds).write_parquet(quarantine)
    with open_catalog(path) as con:
        record_pool(con, samples_parquet=samples, quarantine_parquet=quarantine, digest="d")
        publish_selections(con, [_draft("first", ["s00", "s01", "s02"])])
        publish_selections(con, [_draft("second", ["s02", "s03", "s00"])])
        row = EvaluationRow(2, "second", "selection", "sums", "loss", 1.25, 1.0, 1.5, 10)
        base = EvaluationRow(None, "second", "zero_shot", "sums", "loss", 2.5, 2.0, 3.0, 10)
        record_evaluations(con, [row, base])
        differences = {"zero_shot": (-1.25, -1.5, -1.0), "random": (-0.1, -0.3, 0.1)}
        record_comparisons(
            con,
            [
                ComparisonRow(
                    2, "second", "sums", name, "sums", "loss", *ends, False, 10, 1 + 2 * (name == "random")
                )
                for name, ends in differences.items()
            ],
        )
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A Llama of hidden size 32 with random weights and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator(["What is one and two? Three."] * 4, trainer)
    config = LlamaConfig(
        vocab_size=bare.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config_file(tmp_path, model_folder):
    """A configuration of 200 samples, one of them repeated and one row broken, with a target of five rows."""
    rows = [json.dumps({"prompt": f"What is {i} and {i}?", "completion": str(2 * i)}) for i in range(200)]
    (tmp_path / "pool.jsonl").write_text("\n".join([*rows, rows[0], "{broken"]) + "\n")
    target = [
        {"split": split, "prompt": f"Add {i}.", "completion": "Done."}
        for i, split in enumerate(["validation"] * 2 + ["test"] * 3)
    ]
    (tmp_path / "target.jsonl").write_text("\n".join(json.dumps(row) for row in target) + "\n")
    tree = {
        "pool": {"sources": [{"path": "pool.jsonl", "name": "sums"}]},
        "target": {"name": "adding", "validation": "target.jsonl", "test": "target.jsonl"},
        "model": {"base": str(model_folder), "max_length": 128, "lora": {"r": 2, "alpha": 4}},
        "mode": "static",
        "warmup": {"epochs": 3, "batch_size": 4},
        "finetune": {"epochs": 2, "batch_size": 4},
        "execution": {"device": "cpu"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def _pool_frame():
    ids = [f"s{i:02d}" for i in range(12)]
    prompts = [HOSTILE, *(f"question {i}" for i in range(1, 12))]
    messages = [
        json.dumps([{"role": "user", "content": prompt}, {"role": "assistant", "content": "answer"}])
        for prompt in prompts
    ]
    return pl.DataFrame(
        {
            "sample_id": ids,
            "source": ["sums"] * 4 + ["talk"] * 8,
            "messages": messages,
            "n_chars": [20] * 12,
            "path": ["pool.jsonl"] * 12,
            "row_number": list(range(1, 13)),
        }
    )


@pytest.fixture
def new_draft():
    """Make a selection of three samples for the target `sums`."""
    return _draft


def _draft(run_id, ids):
    from clusterucb_core.store import SelectionDraft

    influence = [1.0 - 0.125 * i for i in range(len(ids))]
    ranks = list(range(1, len(ids) + 1))
    columns = {"rank": ranks, "sample_id": ids, "influence": influence, "cluster": [0, 1, None]}
    return SelectionDraft(
        selection_key=run_id,
        run_id=run_id,
        period=1,
        pool_version=1,
        target="sums",
        mode="static",
        policy="ucb_beta",
        budget_samples=6,
        unspent_samples=2,
        separation_p=0.4 if run_id == "second" else None,
        gradient_evaluations=18,
        gradient_evaluations_reused=2,
        target_gradient_evaluations=4,
        selection_flops=1.0e9,
        full_selection_flops=4.0e9,
        cost={
            "clustering": {"gradient_evaluations": 12, "flops": 5.0e8},
            "full": {"gradient_evaluations": 36, "flops": 4.0e9},
        },
        config={"seed": 0},
        config_digest="c",
        code_version="0",
        mlflow_run_id=None,
        flow_run_id=None,
        pulls=pl.DataFrame(),
        samples=pl.DataFrame(columns),
    )
