"""The flow on a Prefect server, with MLflow in a file: versions, tracking, links both ways, repeats."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = ("pool.max_samples=300", "warmup.epochs=2", "finetune.epochs=1", "evaluate.random_seeds=1")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


def run(config, home, *more):
    overrides = [part for override in (*SMALL, *more) for part in ("--set", override)]
    line = [sys.executable, "-m", "flows", "run", str(config), *overrides, "--json"]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def mlflow_run(home, result):
    from mlflow import MlflowClient

    data = MlflowClient(f"sqlite:///{home / 'mlflow.db'}").get_run(result["mlflow_run_id"]).data
    return data.metrics, data.tags


@pytest.fixture(scope="module")
def result(config, home):
    return run(config, home)


def test_a_run_publishes_a_version_and_says_what_it_computed(result):
    assert result["versions"] == [1]
    assert result["work"]["trainings"] == 4
    assert [item["subject"] for item in result["subjects"]] == ["selection", "random:0", "full", "zero_shot"]


def test_mlflow_holds_the_run_and_names_the_flow_run(result, home):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    found = client.get_run(result["mlflow_run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.tags["clusterucb.run_id"] == result["run_id"]
    assert found.data.tags["prefect.flow_run_id"]
    assert found.data.params["selection.policy"] == "ucb_beta"
    assert len(client.get_metric_history(result["mlflow_run_id"], "period_1/reward_mean")) > 10
    names = {item.path for item in client.list_artifacts(result["mlflow_run_id"])}
    assert {"config.yaml", "selection-period-1.csv", "adapter", "report.html"} <= names
    assert {item.dataset.name for item in found.inputs.dataset_inputs} == {
        "pool", "unit_conversion-validation", "unit_conversion-test", "selection-unit_conversion",
    }  # fmt: skip
    best = client.get_model_version_by_alias("clusterucb-unit_conversion", "best")
    assert best.tags["clusterucb.run_id"] == result["run_id"]
    assert float(best.tags["clusterucb.test_loss"]) == result["subjects"][0]["loss"]


def test_mlflow_holds_the_time_of_every_stage_and_what_was_found_done(result, home):
    metrics, _ = mlflow_run(home, result)
    calls = {
        key: metrics[f"stages/{key}/calls"] for key in ("warmup", "finetune", "evaluate", "cluster_pool")
    }
    assert calls == {"warmup": 2, "finetune": 3, "evaluate": 4, "cluster_pool": 2}
    # the full baseline takes the selection's, and one target's candidates are those of every target
    cached = {key.split("/")[1] for key, value in metrics.items() if key.endswith("/cached") and value}
    assert cached == {"warmup", "cluster_pool", "share_candidates"}
    assert metrics["run/cache_hits"] == 3
    assert metrics["run/gradient_evaluations"] == result["work"]["gradient_evaluations"]
    assert 0 < metrics["stages/features-adam/seconds"] < result["seconds"]
    assert metrics["excluded_samples"] >= 0


def test_the_log_of_a_run_names_it_and_its_version_and_holds_no_text_of_a_sample(result, home, config):
    path = home / "logs" / f"{result['run_id']}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {line["run_id"] for line in lines} == {result["run_id"]}
    assert all(line["flow_run_id"] for line in lines)
    told = [line["message"] for line in lines]
    assert told[0].endswith("begins")
    assert any(text.startswith("warmup took") for text in told)
    after = [line for line in lines if "selection_version" in line]
    assert {line["selection_version"] for line in after} == {1}
    assert any("adapter registered" in line["message"] for line in after)
    rows = [json.loads(row) for row in (config.parent / "target.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows if any(row["prompt"] in text for text in told)] == []


def test_a_run_for_several_targets_shares_its_gradients_and_has_a_table_for_each(config, tmp_path):
    files = yaml.safe_load(config.read_text())["target"]
    rows = (config.parent / "target.jsonl").read_text().splitlines()
    (config.parent / "other.jsonl").write_text("\n".join(rows[10:60]))
    other = {"name": "other", "validation": "other.jsonl", "test": "other.jsonl"}
    result = run(config, tmp_path, "target=null", f"targets={json.dumps([files, other])}")
    assert [item["target"] for item in result["targets"]] == ["unit_conversion", "other"]
    assert [item["versions"] for item in result["targets"]] == [[1], [2]]
    assert result["subjects"] == result["targets"][0]["subjects"]
    # the warmup, the random baseline, and for each target its selection and the full one
    assert result["work"]["trainings"] == 1 + 1 + 2 + 2
    # full selection of two targets takes what that of one takes: all samples at both checkpoints
    assert result["work"]["gradient_evaluations"] == 600
    metrics, tags = mlflow_run(tmp_path, result)
    assert {"unit_conversion/selection/loss", "other/selection/loss"} <= set(metrics)
    assert tags["clusterucb.selection_versions"] == "1,2"


def test_a_repeat_computes_nothing_with_or_without_the_records_of_prefect(result, config, home):
    again = run(config, home)
    assert again["versions"] == result["versions"]
    assert again["work"] == {"gradient_evaluations": 0, "trainings": 0}
    shutil.rmtree(home / "prefect" / "results")
    shutil.rmtree(home / "artifacts" / "runs")
    again = run(config, home)
    assert again["versions"] == result["versions"]
    assert again["work"] == {"gradient_evaluations": 0, "trainings": 0}


GRID = "compare={policies: [ucb_beta, linucb], budget_fractions: [0.25], seeds: 2, finetune: true}"


def compared(config, home, *options):
    overrides = [part for override in (*SMALL, GRID) for part in ("--set", override)]
    line = [sys.executable, "-m", "flows", "compare", str(config), *overrides, *options, "--json"]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_comparison_reuses_the_run_and_measures_the_same(result, config, home, tmp_path):
    found = compared(config, home, "--out", str(tmp_path / "out"))
    # the run has computed full selection's gradients, and trained on its own, on random:0 and on full
    assert found["work"] == {"gradient_evaluations": 0, "trainings": 4}
    lines = {line["policy"]: line for line in found["settings"]}
    subjects = {item["subject"]: item for item in result["subjects"]}
    assert lines["full"]["loss"] == subjects["full"]["loss"]
    real, first = subjects["selection"], found["replays"][0]
    assert (first["policy"], first["seed"]) == ("ucb_beta", 0)
    assert [first[key] for key in ("captured_influence", "recall")] == [
        real[key] for key in ("captured_influence", "recall")
    ]
    for line in lines.values():
        assert line["loss_low"] <= line["loss"] <= line["loss_high"]
    names = {"comparison.csv", "comparison.png", "replays.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_a_repeated_comparison_does_no_work(result, config, home):
    first, again = compared(config, home), compared(config, home)
    assert again["work"] == {"gradient_evaluations": 0, "trainings": 0}
    assert again["settings"] == first["settings"]
