"""What MLflow keeps of a run: opened once, sent once, kept back while MLflow is down and sent later."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import mlflow.artifacts
import mlflow.data
import polars as pl
import pytest
import yaml
from mlflow import MlflowClient
from prefect import flow
from prefect.artifacts import Artifact

from clusterucb_core.comparison import CHART, REPLAYS, TABLE, ComparisonResult
from clusterucb_core.config import load_config
from clusterucb_core.demo import TARGET_FAMILY as TARGET
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.errors import TrackingUnavailable
from clusterucb_core.lineage import run_adapters
from clusterucb_core.lm.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter
from clusterucb_core.planning import plan_run
from clusterucb_core.stages.comparison_summary import SettingSummary
from clusterucb_core.stages.drawn import read_pulls, read_scores, read_selected
from clusterucb_core.stages.intake import read_target
from clusterucb_core.stages.models import checkpoint_folder
from clusterucb_core.stages.summary import SubjectSummary, TargetOutcome, Work
from clusterucb_core.stages.training import loss_history
from clusterucb_core.store import PoolVersion
from clusterucb_core.tracks import RunFigures, StageTime, run_files, run_metrics, run_parameters, run_tags
from flows.home import configure_tracking
from tasks.tracking import (
    BUFFER,
    PARENT_TAG,
    RUN_TAG,
    Record,
    Tracking,
    finish_comparison_tracking,
    finish_tracking,
    start_comparison_tracking,
    start_tracking,
)

RECIPE = TinyModelRecipe(
    vocabulary=300, tokenizer_texts=60, hidden=16, layers=1, heads=2, steps=2, batch_samples=4
)
SMALL = ("pool.max_samples=60", "warmup.epochs=1", "finetune.epochs=1")
SUBJECT = SubjectSummary(
    subject="random:0", n_selected=3, sources={"sums": 3}, captured_influence=0.25, recall=None, loss=1.5,
    loss_low=1.0, loss_high=2.0, gradient_evaluations=15, estimated_recall=0.5, recall_low=0.25,
    recall_high=0.75, separation_p=0.001, selection_flops=6e9, full_selection_flops=8e9,
    cost={"context": {"gradient_evaluations": 0, "flops": 2e9}},
)  # fmt: skip
OWN = SUBJECT.model_copy(update={"subject": "selection", "loss": 1.25})
POOL = PoolVersion(
    pool_version=7, parent_version=6, n_samples=60, n_added=1, n_removed=0, n_quarantined=2,
    digest="ab" * 32, created=True,
)  # fmt: skip
FIGURES = RunFigures(
    pool=POOL,
    work=Work(gradient_evaluations=42, trainings=2),
    seconds=12.5,
    stages=(
        StageTime(stage="cluster pool", calls=2, cached=1, seconds=1.5),
        StageTime(stage="features-adam", calls=3, cached=0, seconds=8.0),
    ),
)
# Prefect leaves the client open that it makes for an artifact.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module")
def prepared(load_module, demo, tmp_path_factory):
    """A real selection with the trainings before and after it, and what it was chosen from."""
    plain = load_module("integration/plain_run")
    plan = plan_run(*load_config(demo, SMALL), home=tmp_path_factory.mktemp("stages"))
    inputs = plain.prepare(plan)[0]
    return plain.select(plan, inputs, subject="selection"), inputs


@pytest.fixture(scope="module")
def chosen(prepared):
    return prepared[0]


@pytest.fixture(scope="module")
def tested(prepared):
    return prepared[1].test_tokens


@pytest.fixture
def down(monkeypatch) -> Iterator[str]:
    """The address of an MLflow that nobody serves; `go_down` tells it to the tasks."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with socket.socket() as taken:  # bound and not listening: refuses, and nobody else can get the port
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def plan_of(demo, tmp_path):
    """Plan a run whose state folder is this test's; other overrides make it another run."""
    return lambda *overrides: plan_run(*load_config(demo, [*SMALL, *overrides]), home=tmp_path / "home")


@flow(persist_result=False, validate_parameters=False)
def start(*plans):
    """Start tracking each plan, as `flow-0`, `flow-1` and so on, in a flow: the links belong to one."""
    return [start_tracking(plan, f"flow-{i}", f"http://prefect/{i}") for i, plan in enumerate(plans)]


def go(address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)


def runs_of(client, run_id):
    experiments = [found.experiment_id for found in client.search_experiments()]
    return client.search_runs(experiments, filter_string=f"tags.`{RUN_TAG}` = '{run_id}'")


def outcome(chosen, *versions, target="sums", test_tokens=None):
    subjects = (OWN, SUBJECT)
    return TargetOutcome(
        target=target, chosen=chosen, versions=versions, subjects=subjects, test_tokens=test_tokens
    )


def history(client, mlflow_run_id, key):
    return [(item.step, item.value) for item in client.get_metric_history(mlflow_run_id, key)]


def test_a_run_is_opened_once_and_a_second_attempt_takes_it_over(prefect_server, up, plan_of):
    plan, client = plan_of(), MlflowClient(up)
    other, first, second = start(plan_of("seed=1"), plan, plan)
    assert first.mlflow_run_id == second.mlflow_run_id != other.mlflow_run_id
    (run,) = runs_of(client, plan.run_id)
    assert (run.info.run_id, run.info.status) == (first.mlflow_run_id, "RUNNING")
    assert run.data.tags["prefect.flow_run_id"] == "flow-2"
    assert run.data.tags["prefect.flow_run_url"] == "http://prefect/2"
    link = Artifact.get(key="mlflow-run").data
    assert second.mlflow_run_id in link
    assert f"mlflow ui --backend-store-uri {up}" in link


def test_a_finished_run_holds_parameters_curves_and_files_and_takes_nothing_twice(
    prefect_server, up, plan_of, chosen
):
    plan, client = plan_of(), MlflowClient(up)
    (tracking,) = start(plan)
    for _ in range(2):
        finish_tracking.fn(plan, tracking, [outcome(chosen, 5)], FIGURES)
    run = client.get_run(tracking.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == run_parameters(plan.config)
    assert run.data.params["selection.policy"] == "ucb_beta"
    assert run.data.tags["clusterucb.selection_version"] == "5"
    assert run.data.tags["clusterucb.selection_versions"] == "5"

    rewards = read_pulls(chosen.periods[0].draws)["reward"].to_list()
    assert len(rewards) == 15
    means = [(step, sum(rewards[: step + 1]) / (step + 1)) for step in range(15)]
    found = history(client, run.info.run_id, "period_1/reward_mean")
    assert [step for step, _ in found] == list(range(15))
    assert [value for _, value in found] == pytest.approx([value for _, value in means])
    assert history(client, run.info.run_id, "period_1/budget_spent")[-1] == (14, 15.0)
    losses = [(point.step, point.loss) for training in chosen.trainings for point in loss_history(training)]
    assert sorted(history(client, run.info.run_id, "train/loss")) == sorted(losses)
    assert run.data.metrics["random_0/loss"] == 1.5
    assert "random_0/recall" not in run.data.metrics
    estimates = {key: run.data.metrics[f"random_0/{key}"] for key in ("estimated_recall", "separation_p")}
    assert estimates == {"estimated_recall": 0.5, "separation_p": 0.001}
    assert "random_0/estimated_captured" not in run.data.metrics
    assert run.data.metrics["random_0/selection_flops"] == 6e9
    assert run.data.metrics["random_0/full_selection_flops"] == 8e9
    assert run.data.metrics["random_0/gradient_evaluations/context"] == 0
    assert run.data.metrics["random_0/flops/context"] == 2e9
    took = {key: run.data.metrics[f"run/{key}"] for key in ("gradient_evaluations", "cache_hits", "seconds")}
    assert took == {"gradient_evaluations": 42, "cache_hits": 1, "seconds": 12.5}
    stage = {key: run.data.metrics[f"stages/cluster_pool/{key}"] for key in ("calls", "cached", "seconds")}
    assert stage == {"calls": 2, "cached": 1, "seconds": 1.5}

    folder = Path(client.download_artifacts(run.info.run_id, ""))
    assert yaml.safe_load((folder / "config.yaml").read_text("utf-8")) == plan.config.model_dump(mode="json")
    selected = (folder / "selection-period-1.csv").read_text("utf-8")
    assert selected == read_selected(chosen.periods[0].draws).write_csv()
    scores = pl.read_csv(folder / "scores-period-1.csv")
    assert scores.columns == read_scores(chosen.periods[0].draws).columns
    assert len(scores) == 15


def finished(plan, outcome):
    """Track a run from its start to its end, outside a flow; returns its MLflow run."""
    tracking = start_tracking.fn(plan, "flow-0", None)
    finish_tracking.fn(plan, tracking, [outcome], FIGURES)
    return tracking.mlflow_run_id


@pytest.fixture
def unlinked(monkeypatch):
    """No link artifact is made: that needs a flow."""
    monkeypatch.setattr("tasks.tracking.runs._link", lambda *_: None)


def test_the_inputs_of_a_run_are_the_versions_of_its_pool_target_and_selection(up, unlinked, plan_of, chosen):
    client = MlflowClient(up)
    run = client.get_run(finished(plan_of(), outcome(chosen, 5)))
    found = {item.dataset.name: item for item in run.inputs.dataset_inputs}
    contexts = {name: item.tags[0].value for name, item in found.items()}
    assert contexts == {
        "pool": "pool",
        "sums-validation": "target",
        "sums-test": "target",
        "selection-sums": "selection",
    }
    assert found["pool"].dataset.digest == f"v7-{'ab' * 8}"
    assert found["selection-sums"].dataset.digest.startswith("v5-")
    assert found["sums-test"].dataset.digest == found["sums-validation"].dataset.digest
    rows = {name: json.loads(item.dataset.profile)["num_rows"] for name, item in found.items()}
    assert rows["pool"] == 60
    assert rows["selection-sums"] == len(read_selected(chosen.periods[0].draws))
    assert mlflow.data.get_source(found["pool"]).to_dict()["tags"]["pool_version"] == "7"


def test_no_word_of_a_sample_is_in_the_inputs_of_a_run(up, unlinked, plan_of, chosen):
    run = MlflowClient(up).get_run(finished(plan_of(), outcome(chosen, 5)))
    target = read_target(chosen.periods[0].spec.target)
    texts = [m.content for row in (*target.validation, *target.test) for m in row.messages]
    told = json.dumps([item.to_dictionary() for item in run.inputs.dataset_inputs])
    assert len(texts) > 20
    assert [text for text in texts if len(text) > 8 and text in told] == []


def test_the_adapter_of_a_run_is_registered_and_peft_loads_it(up, unlinked, plan_of, chosen, tested, demo):
    plan, client = plan_of(), MlflowClient(up)
    run_id = finished(plan, outcome(chosen, 5, test_tokens=tested))
    version = client.get_model_version_by_alias("clusterucb-sums", "best")
    names = ("pool_version", "selection_version", "run_id", "target", "test_loss")
    tags = {name: version.tags[f"clusterucb.{name}"] for name in names}
    assert tags == {
        "pool_version": "7",
        "selection_version": "5",
        "run_id": plan.run_id,
        "target": "sums",
        "test_loss": "1.25",
    }
    assert version.run_id == run_id
    address = "models:/clusterucb-sums@best"
    folder = Path(mlflow.artifacts.download_artifacts(address, tracking_uri=up))
    own = checkpoint_folder(chosen.checkpoint)
    assert (folder / ADAPTER_WEIGHTS).read_bytes() == (own / ADAPTER_WEIGHTS).read_bytes()
    assert {path.name for path in folder.iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
    model = load_adapter(plan.model.settings, folder, "cpu")
    assert model.peft_config["default"].r == plan.config.model.lora.r


def test_a_loss_is_compared_on_the_same_test_rows_only(plan_of, chosen, tested):
    found = outcome(chosen, 5, test_tokens=tested)
    adapters = [
        next(run_adapters(POOL, [found], run_id="run", limit=limit)) for limit in (None, 10_000, 3, 2)
    ]
    digests = [adapter.test_digest for adapter in adapters]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    (unknown,) = run_adapters(POOL, [outcome(chosen, 5)], run_id="run", limit=None)
    assert (unknown.test_loss, unknown.test_digest) == (None, None)


def test_adapters_of_several_targets_lie_in_folders_of_their_own(chosen):
    outcomes = [outcome(chosen, 1, target="sums"), outcome(chosen, 2, target="dates")]
    found = [(item.model, item.place) for item in run_adapters(POOL, outcomes, run_id="run", limit=None)]
    assert found == [("clusterucb-sums", "adapter-sums"), ("clusterucb-dates", "adapter-dates")]


@pytest.mark.slow
def test_a_server_with_proxied_artifacts_takes_a_run_and_gives_its_adapter_back(
    load_module, tmp_path, unlinked, plan_of, chosen, tested, monkeypatch
):
    services = load_module("integration/services")
    port = services.free_port()
    store = ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    line = ["mlflow", "server", *store, "--artifacts-destination", str(tmp_path / "proxied")]
    line += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    address, log = f"http://127.0.0.1:{port}", tmp_path / "server" / "server.log"
    go(address, monkeypatch)
    with services.background(line, services.clean_environment(), log=log):
        services.wait_for(lambda: services.answers(f"{address}/health"), seconds=120, what="MLflow")
        plan, client = plan_of(), MlflowClient(address)
        run_id = finished(plan, outcome(chosen, 5, test_tokens=tested))
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        assert len(run.inputs.dataset_inputs) == 4
        assert finished(plan, outcome(chosen, 5, test_tokens=tested)) == run_id
        assert len(client.search_model_versions("name = 'clusterucb-sums'")) == 1
        folder = Path(
            mlflow.artifacts.download_artifacts("models:/clusterucb-sums@best", tracking_uri=address)
        )
        own = checkpoint_folder(chosen.checkpoint)
        assert (folder / ADAPTER_WEIGHTS).read_bytes() == (own / ADAPTER_WEIGHTS).read_bytes()
        load_adapter(plan.model.settings, folder, "cpu")


def test_what_belongs_to_several_targets_bears_their_names(plan_of, chosen):
    outcomes = [outcome(chosen, 1, target="sums"), outcome(chosen, 2, target="dates")]
    alone = {(item.key, item.step, item.value) for item in run_metrics(outcomes[:1])}
    together = {(item.key, item.step, item.value) for item in run_metrics(outcomes)}
    assert together == {(f"{name}/{key}", *rest) for name in ("sums", "dates") for key, *rest in alone}
    parts = [f"{kind}-{name}-period-1.csv" for name in ("sums", "dates") for kind in ("selection", "scores")]
    names = ["config.yaml", *parts]
    assert list(run_files(plan_of().config, outcomes)) == names
    assert run_tags(outcomes) == {
        "clusterucb.selection_version": "1",
        "clusterucb.selection_versions": "1,2",
    }


def test_what_mlflow_could_not_take_is_kept_and_sent_by_a_later_run(
    prefect_server, up, down, plan_of, chosen, monkeypatch, caplog
):
    plan, later = plan_of(), plan_of("seed=1")
    go(down, monkeypatch)
    tracking = start_tracking.fn(plan, "flow-9", None)
    assert tracking.mlflow_run_id is None
    assert f"MLflow at {down} did not take this run" in caplog.text
    finish_tracking.fn(plan, tracking, [outcome(chosen, 4)], FIGURES)
    (kept,) = (Path(plan.workspace.home) / BUFFER).iterdir()
    assert kept.name == f"{plan.run_id}.json"
    record = Record.model_validate_json(kept.read_text("utf-8"))

    go(up, monkeypatch)
    (tracking,) = start(later)
    finish_tracking.fn(later, tracking, [outcome(chosen, 5)], FIGURES)
    assert list((Path(plan.workspace.home) / BUFFER).iterdir()) == []
    client = MlflowClient(up)
    (run,) = runs_of(client, plan.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == record.parameters == run_parameters(plan.config)
    assert run.data.tags.items() >= record.tags.items() >= {"prefect.flow_run_id": "flow-9"}.items()
    assert record.tags["clusterucb.selection_version"] == "4"
    sent = {
        (key, step, value)
        for key in run.data.metrics
        for step, value in history(client, run.info.run_id, key)
    }
    assert sent == {(metric.key, metric.step, metric.value) for metric in record.metrics}
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    texts = {path.name: path.read_text("utf-8") for path in folder.iterdir() if path.is_file()}
    assert texts == record.files
    assert [item.info.status for item in runs_of(client, later.run_id)] == ["FINISHED"]


def test_a_run_that_loses_mlflow_on_its_way_is_completed_later_under_its_own_mlflow_run(
    prefect_server, up, down, plan_of, chosen, monkeypatch
):
    plan, later = plan_of(), plan_of("seed=1")
    tracking, later_tracking = start(plan, later)
    go(down, monkeypatch)
    finish_tracking.fn(plan, tracking, [outcome(chosen, 4)], FIGURES)
    go(up, monkeypatch)
    finish_tracking.fn(later, later_tracking, [outcome(chosen, 5)], FIGURES)
    (run,) = runs_of(MlflowClient(up), plan.run_id)
    assert (run.info.run_id, run.info.status) == (tracking.mlflow_run_id, "FINISHED")
    assert run.data.params == run_parameters(plan.config)


def test_a_run_that_must_be_tracked_fails_with_the_address_and_what_to_do(down, plan_of, chosen, monkeypatch):
    plan = plan_of("execution.when_tracking_is_down=fail")
    advice = r"correct MLFLOW_TRACKING_URI, or set execution\.when_tracking_is_down=buffer"
    tracking = Tracking(mlflow_run_id="opened before", tags={RUN_TAG: plan.run_id})
    go(down, monkeypatch)
    with pytest.raises(TrackingUnavailable, match=f"^MLflow at {down} did not take this run .*{advice}"):
        start_tracking.fn(plan, None, None)
    with pytest.raises(TrackingUnavailable, match=advice):
        finish_tracking.fn(plan, tracking, [outcome(chosen, 4)], FIGURES)
    assert not (Path(plan.workspace.home) / BUFFER).exists()


def test_no_message_names_the_password_of_an_address(down, plan_of, monkeypatch, caplog):
    go(down.replace("://", "://someone:opensesame@"), monkeypatch)
    start_tracking.fn(plan_of(), None, None)
    with pytest.raises(TrackingUnavailable) as caught:
        start_tracking.fn(plan_of("execution.when_tracking_is_down=fail"), None, None)
    masked = down.replace("://", "://***@")
    assert masked in caplog.text
    assert masked in str(caught.value)
    assert "opensesame" not in caplog.text + str(caught.value)
    assert caught.value.__cause__ is None


def test_a_server_that_is_down_costs_seconds_unless_the_user_asks_for_patience(monkeypatch, tmp_path):
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    for name in (*names, "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # what the test sets is undone at its end
        monkeypatch.delenv(name)
    monkeypatch.setenv(names[0], "5")
    configure_tracking(tmp_path)
    assert [os.environ[name] for name in names] == ["5", "15"]
    monkeypatch.delenv(names[0])
    configure_tracking(tmp_path)
    assert [os.environ[name] for name in names] == ["2", "15"]


@pytest.fixture
def compared(tmp_path):
    """The result of a comparison of one policy at one budget with full selection; its files exist."""
    lines = (
        SettingSummary(
            target="sums", policy="ucb1", budget_fraction=0.1, replays=4, captured_influence=0.5,
            captured_by_period=(0.25, 0.75), flops_share=0.3, audit_fraction=0.04,
        ),
        SettingSummary(target="sums", policy="full", budget_fraction=None, captured_influence=1.0),
    )  # fmt: skip
    for name, content in ((TABLE, b"policy\n"), (REPLAYS, b"seed\n"), (CHART, b"\x89PNG\x00\xff")):
        (tmp_path / name).write_bytes(content)
    return ComparisonResult(
        run_id="run", targets=("sums",), mode="dynamic", n_samples=20, periods=(2, 3), seeds=2,
        audit_fraction=0.04, settings=lines, folder=str(tmp_path), mlflow_run_id=None, seconds=1.0,
        work=Work(gradient_evaluations=60, trainings=3),
    )  # fmt: skip


def nested_in(client, parent):
    filter_string = f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'"
    return client.search_runs([parent.info.experiment_id], filter_string=filter_string)


def test_a_comparison_is_a_run_with_one_nested_in_it_for_every_policy_and_budget(
    up, plan_of, compared, monkeypatch
):
    monkeypatch.setattr("tasks.tracking.runs._link", lambda *_: None)
    plan, client = plan_of(), MlflowClient(up)
    tracking = start_comparison_tracking.fn(plan, "flow-0", None)
    for _ in range(2):
        finish_comparison_tracking.fn(plan, tracking, compared, FIGURES)
    (parent,) = runs_of(client, plan.run_id)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", f"compare {TARGET} {plan.run_id[:8]}")
    folder = Path(client.download_artifacts(parent.info.run_id, ""))
    assert (folder / CHART).read_bytes() == b"\x89PNG\x00\xff"
    assert {path.name for path in folder.iterdir()} == {TABLE, REPLAYS, CHART}
    nested = {run.info.run_name: run for run in nested_in(client, parent)}
    assert set(nested) == {"ucb1 0.1", "full"}
    found = nested["ucb1 0.1"]
    names = {"target": "sums", "policy": "ucb1", "budget_fraction": "0.1", "audit_fraction": "0.04"}
    assert (found.info.status, found.data.params) == ("FINISHED", names)
    assert (found.data.metrics["captured_influence"], found.data.metrics["flops_share"]) == (0.5, 0.3)
    by_period = history(client, found.info.run_id, "captured_influence_by_period")
    assert by_period == [(1, 0.25), (2, 0.75)]


def test_a_comparison_that_mlflow_could_not_take_is_sent_later_with_its_nested_runs(
    up, down, plan_of, compared, chosen, monkeypatch
):
    monkeypatch.setattr("tasks.tracking.runs._link", lambda *_: None)
    plan, later = plan_of(), plan_of("seed=1")
    go(down, monkeypatch)
    finish_comparison_tracking.fn(plan, start_comparison_tracking.fn(plan, "flow-0", None), compared, FIGURES)
    go(up, monkeypatch)
    finish_tracking.fn(later, start_tracking.fn(later, "flow-1", None), [outcome(chosen, 4)], FIGURES)
    client = MlflowClient(up)
    (parent,) = runs_of(client, plan.run_id)
    assert parent.info.run_name == f"compare {TARGET} {plan.run_id[:8]}"
    assert {run.info.run_name for run in nested_in(client, parent)} == {"ucb1 0.1", "full"}
    folder = Path(client.download_artifacts(parent.info.run_id, ""))
    assert (folder / CHART).read_bytes() == b"\x89PNG\x00\xff"
