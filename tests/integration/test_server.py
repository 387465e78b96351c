"""The flow on a server that stays: records of a run, the manual deployment, a worker, the scheduler."""

import contextlib
import copy
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pytest

from clusterucb_core.config import load_config
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

ROOT = Path(__file__).parents[2]
POOL = "clusterucb-process"
RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = ("pool.max_samples=300", "warmup.epochs=2", "finetune.epochs=1", "evaluate.random_seeds=1")
MANY_SHARDS = ("execution.shard_samples=10", "execution.max_batch_tokens=512")
SUBJECTS = ["selection", "random:0", "full", "zero_shot"]
STAGES = Counter(
    {
        "ingest pool": 1,
        "read target": 1,
        "tokenize pool": 1,
        "tokenize validation": 1,
        "tokenize test": 1,
        "choose candidates": 1,
        "share candidates": 2,  # those of any target, and of every one
        "warmup": 2,  # of the selection and of the full baseline
        "cluster pool": 2,
        "draw ucb_beta, period 1": 1,
        "draw random, period 1": 1,
        "draw full, period 1": 1,
        "finetune": 3,
        "evaluate": 4,
    }
)
RECORDS = Counter(
    {
        "start tracking": 1,
        "record pool version": 1,
        "publish selection": 1,
        "record features": 1,
        "summarise subject": 4,
        "record evaluations": 1,
        "count work": 1,
        "record times": 1,
        "write reports": 1,
        "finish tracking": 1,
        "keep outcome": 1,
        "keep trail": 1,
    }
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(services, tmp_path_factory):
    with services.prefect_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module")
def first(config, server, home):
    """The run that computes everything, and what the server and MLflow hold of it right after it."""
    return run_and_look(config, server, home)


@pytest.fixture(scope="module")
def repeat(first, config, server, home):
    """The same run with its kept result gone, so that a flow is started."""
    shutil.rmtree(home / "artifacts" / "runs")
    return run_and_look(config, server, home)


@pytest.fixture(scope="module")
def deployment(server):
    created = server.command("work-pool", "create", POOL, "--type", "process", folder=ROOT)
    assert created.returncode == 0, created.stdout + created.stderr
    deployed = server.command("--no-prompt", "deploy", "--all", folder=ROOT, CLUSTERUCB_CHECKOUT=str(ROOT))
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    return server.call("GET", "deployments/name/clusterucb/pipeline").raise_for_status().json()


@pytest.fixture(scope="module")
def parameters(config):
    return {"config": load_config(config, SMALL)[0].model_dump(mode="json")}


@pytest.fixture(scope="module")
def worker(services, server, deployment, home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    with services.prefect_worker(server, POOL, folder, CLUSTERUCB_HOME=str(home)):
        yield folder / "worker.log"


def run_and_look(config, server, home):
    overrides = [part for override in (*SMALL, *MANY_SHARDS) for part in ("--set", override)]
    line = [sys.executable, "-m", "flows", "run", str(config), *overrides, "--json"]
    environment = server.environment | {"CLUSTERUCB_HOME": str(home)}
    before = {run["id"] for run in server.find("flow_runs")}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    (flow_run,) = [run for run in server.find("flow_runs") if run["id"] not in before]
    return SimpleNamespace(
        result=result,
        flow_run=flow_run,
        artifacts=server.find("artifacts", artifacts={"flow_run_id": {"any_": [flow_run["id"]]}}),
        tags=mlflow_tags(home, result["mlflow_run_id"]),
    )


def mlflow_tags(home, run_id):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}").get_run(run_id).data.tags


def task_runs(services, server, flow_run, expected):
    """Return the task runs of a flow run by name; they reach the server's tables a moment after the run."""

    def found():
        return server.find("task_runs", task_runs={"flow_run_id": {"any_": [flow_run["id"]]}})

    def complete():
        return len(found()) >= expected and all(run["state_type"] == "COMPLETED" for run in found())

    with contextlib.suppress(TimeoutError):  # the caller's comparison tells what is missing
        services.wait_for(complete, seconds=30, what="task runs")
    return found()


def stage_name(run):
    return re.sub(r"-[0-9a-f]{3}$", "", run["name"])


def shards_shown(run):
    """Count the shards that the progress artifacts of a run speak of."""
    shown = [item["description"] for item in run.artifacts if item["type"] == "progress"]
    return sum(int(re.search(r"(\d+) shards", text).group(1)) for text in shown)


def test_the_server_records_the_flow_run_with_its_parameters(first, parameters, server):
    assert server.call("GET", f"flows/{first.flow_run['flow_id']}").json()["name"] == "clusterucb"
    assert first.flow_run["state_name"] == "Completed"
    assert first.flow_run["parameters"]["config"] == parameters["config"]
    assert first.flow_run["parameters"]["execution"]["shard_samples"] == 10
    assert first.result["work"]["trainings"] == 4


def test_no_task_run_of_a_fan_out_is_lost(first, services, server):
    shards = shards_shown(first)
    assert shards > 50
    expected = STAGES + RECORDS + Counter({"featurize shard": shards})
    found = task_runs(services, server, first.flow_run, expected.total())
    assert Counter(map(stage_name, found)) == expected
    assert {run["state_type"] for run in found} == {"COMPLETED"}
    again = sorted(stage_name(run) for run in found if run["state_name"] == "Cached")
    # the full baseline shares two of them with the selection, and one target's candidates are all there are
    assert again == ["cluster pool", "share candidates", "warmup"]


def test_the_artifacts_of_a_run_show_progress_and_its_subjects(first):
    progress = [item for item in first.artifacts if item["type"] == "progress"]
    assert {item["key"] for item in progress} == {"progress-features-adam", "progress-features-plain"}
    assert {item["data"] for item in progress} == {100.0}
    (table,) = [item for item in first.artifacts if item["key"] == "selection-result"]
    rows = json.loads(table["data"])
    assert [row["subject"] for row in rows] == SUBJECTS
    assert [row["loss"] for row in rows] == [item["loss"] for item in first.result["subjects"]]


def test_server_catalog_and_mlflow_name_the_same_runs(first, home, server):
    flow_run, mlflow_run = first.flow_run["id"], first.result["mlflow_run_id"]
    with duckdb.connect(str(home / "catalog.duckdb"), read_only=True) as con:
        assert con.sql("select flow_run_id, mlflow_run_id from selections").fetchall() == [
            (flow_run, mlflow_run)
        ]
    assert first.tags["prefect.flow_run_id"] == flow_run
    assert first.tags["prefect.flow_run_url"].startswith(server.api.removesuffix("/api"))
    assert first.tags["prefect.flow_run_url"].endswith(f"/flow-run/{flow_run}")
    (link,) = [item for item in first.artifacts if item["key"] == "mlflow-run"]
    assert mlflow_run in link["data"]
    (report,) = [item for item in first.artifacts if item["key"] == "report"]
    assert "`clusterucb report 1`" in report["data"]


def own_lines(server, flow_run):
    """Return what our own loggers said in a flow run; the server gives so many lines at a time."""
    lines, wanted = [], {"flow_run_id": {"any_": [flow_run["id"]]}}
    while page := server.find("logs", logs=wanted, offset=len(lines)):
        lines += page
    return [line for line in lines if line["name"].split(".")[0] in ("clusterucb_core", "flows", "tasks")]


def logged(services, server, flow_run, wanted):
    """Return the lines of our own loggers, once the one that is wanted has arrived."""

    def found():
        lines = own_lines(server, flow_run)
        return lines if any(wanted in line["message"] for line in lines) else None

    return services.wait_for(found, seconds=30, what=f"a log line with {wanted!r}")


def test_the_page_of_a_run_shows_what_its_stages_say(first, services, server):
    lines = logged(services, server, first.flow_run, "is complete")
    assert {"flows.run_log", "tasks.clock", "flows.progress"} <= {line["name"] for line in lines}
    assert any(line["message"].startswith("warmup took") for line in lines)
    assert any(re.match(r"features-adam: \d+ of \d+ shards", line["message"]) for line in lines)


def test_a_second_flow_run_finds_every_stage_cached_and_publishes_the_same_version(
    repeat, first, services, server
):
    assert repeat.flow_run["id"] != first.flow_run["id"]
    assert repeat.flow_run["state_name"] == "Completed"
    expected = STAGES + RECORDS
    found = task_runs(services, server, repeat.flow_run, expected.total())
    assert Counter(map(stage_name, found)) == expected
    cached = Counter(stage_name(run) for run in found if run["state_name"] == "Cached")
    assert cached == STAGES
    assert repeat.result["versions"] == first.result["versions"]
    assert repeat.result["work"] == {"gradient_evaluations": 0, "trainings": 0}
    assert repeat.tags["prefect.flow_run_id"] == repeat.flow_run["id"]


def test_the_deployment_runs_one_at_a_time_from_the_checkout(deployment):
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert deployment["work_pool_name"] == POOL
    assert deployment["schedules"] == []
    (step,) = deployment["pull_steps"]
    assert list(step.values()) == [{"directory": str(ROOT)}]


def fields_of(schema, definitions, place=""):
    """Yield the place and the schema of every field, those of nested models and of list items included."""
    for part in schema.get("anyOf", []):
        yield from fields_of(part, definitions, place)
    if "items" in schema:
        yield from fields_of(schema["items"], definitions, place)
    if "$ref" in schema:
        yield from fields_of(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions, place)
    for name, field in schema.get("properties", {}).items():
        below = f"{place}.{name}".lstrip(".")
        named = definitions[field["$ref"].rsplit("/", 1)[-1]] if "$ref" in field else {}
        yield below, {**named, **field}
        yield from fields_of(field, definitions, below)


@pytest.fixture(scope="module")
def form(deployment):
    """The fields of the run form by their place."""
    schema = deployment["parameter_openapi_schema"]
    return dict(fields_of(schema, schema["definitions"]))


def test_every_field_of_the_run_form_has_a_title_and_a_description(form):
    assert {"config.selection.policy", "config.pool.sources.path", "execution.device"} <= set(form)
    assert {"config.target.name", "config.model.lora.r", "config.warmup"} <= set(form)
    lacking = [
        place for place, field in form.items() if not (field.get("title") and field.get("description"))
    ]
    assert lacking == []


def test_every_number_of_the_run_form_has_a_lower_bound(form):
    def unbounded(schema):
        parts = [schema, *schema.get("anyOf", []), *([schema["items"]] if "items" in schema else [])]
        numbers = [part for part in parts if part.get("type") in ("integer", "number")]
        return [part for part in numbers if not {"minimum", "exclusiveMinimum"} & set(part)]

    assert [place for place, field in form.items() if unbounded(field)] == []


@pytest.mark.parametrize(
    ("place", "choice"),
    [
        ("config.selection.policy", "threshold_normal"),
        ("config.selection.aggregate", "mean"),
        ("config.selection.context", "hidden_state"),
        ("config.mode", "static"),
        ("config.model.dtype", "bfloat16"),
        ("config.features.projection", "count_sketch"),
        ("config.clusters.features", "hidden_state"),
        ("config.pool.dedupe", "content"),
        ("config.pool.sources.format", "sharegpt"),
        ("execution.when_tracking_is_down", "fail"),
    ],
)
def test_a_choice_of_the_run_form_is_a_list_to_choose_from(form, place, choice):
    assert choice in form[place]["enum"]
    assert form[place]["type"] == "string"


def test_the_run_form_tells_what_its_two_parameters_are_for(deployment):
    schema = deployment["parameter_openapi_schema"]
    assert schema["required"] == ["config"]
    assert schema["properties"]["config"]["description"] == "What to compute."
    execution = schema["properties"]["execution"]
    assert execution["description"] == "How to execute it; it changes no result."
    assert execution["default"]["runner"] == "threads"
    assert execution["default"]["shard_samples"] == 4096


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("config.selection.budget_fraction", 3, "3 is greater than the maximum of 1"),
        ("config.selection.top_fraction", 0, "0 is less than or equal to the minimum of 0"),
        ("config.selection.policy", "ucb", "'ucb' is not one of ['ucb_beta', 'ucb1',"),
        ("config.compare.policies", ["best"], "'best' is not one of ['ucb_beta', 'ucb1',"),
        ("config.mode", "online", "'online' is not one of ['dynamic', 'static']"),
        ("config.finetune.epochs", 0, "0 is less than the minimum of 1"),
        ("config.selectoin", {}, "'selectoin' was unexpected"),
        ("config.model.lora.rank", 8, "'rank' was unexpected"),
        ("execution.workers", 0, "0 is less than the minimum of 1"),
    ],
)
def test_the_server_refuses_wrong_values_with_the_reason(
    server, deployment, parameters, place, value, reason
):
    wrong = copy.deepcopy({**parameters, "execution": {}})
    *parents, leaf = place.split(".")
    section = wrong
    for name in parents:
        section = section[name]
    section[leaf] = value
    answer = server.call("POST", f"deployments/{deployment['id']}/create_flow_run", parameters=wrong)
    assert answer.status_code == 409
    assert reason in answer.json()["detail"]


def test_the_command_line_passes_a_refusal_on(server, deployment, parameters, tmp_path):
    wrong = copy.deepcopy(parameters)
    wrong["config"]["selection"]["budget_fraction"] = 3
    line = ("deployment", "run", "clusterucb/pipeline", "--params", json.dumps(wrong))
    done = server.command(*line, folder=tmp_path)
    assert done.returncode != 0
    assert "3 is greater than the maximum of 1" in " ".join((done.stdout + done.stderr).split())


def test_a_worker_runs_the_deployment_on_the_artifacts_of_the_command_line(
    repeat, worker, services, server, deployment, parameters, home, tmp_path
):
    shutil.rmtree(home / "artifacts" / "runs")
    line = ("deployment", "run", "clusterucb/pipeline", "--params", json.dumps(parameters), "--watch")
    done = server.command(*line, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + worker.read_text(errors="replace")[-3000:]
    (run,) = server.find("flow_runs", deployments={"id": {"any_": [deployment["id"]]}})
    assert run["state_name"] == "Completed"
    assert run["work_pool_name"] == POOL
    (kept,) = (home / "artifacts" / "runs").glob("*/result.json")
    result = json.loads(kept.read_text(encoding="utf-8"))
    assert result["versions"] == repeat.result["versions"]
    assert result["work"] == {"gradient_evaluations": 0, "trainings": 0}
    assert mlflow_tags(home, result["mlflow_run_id"])["prefect.flow_run_id"] == run["id"]
    lines = logged(services, server, run, "is complete")
    assert any(line["message"].endswith("begins") for line in lines)
    assert "is complete" in worker.read_text(errors="replace")


def test_a_worker_runs_the_shard_tasks_with_the_executor_that_the_form_names(
    worker, services, server, deployment, parameters
):
    wanted = {**parameters, "execution": {"runner": "trains"}}
    run = server.call("POST", f"deployments/{deployment['id']}/create_flow_run", parameters=wanted).json()

    def ended():
        found = server.call("GET", f"flow_runs/{run['id']}").json()
        return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    found = services.wait_for(ended, seconds=90, what="a failed run")
    assert found["state_type"] == "FAILED"
    assert "execution.runner='trains'" in found["state"]["message"]
    assert "threads, processes" in found["state"]["message"]


def test_the_scheduler_creates_the_runs_of_a_schedule(services, server, deployment, parameters):
    schedules = f"deployments/{deployment['id']}/schedules"
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=12)  # none is due while this test runs
    daily = {"schedule": {"interval": 86_400, "anchor_date": start.isoformat()}, "parameters": parameters}

    def scheduled():
        waiting = {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"any_": [deployment["id"]]}}
        return [run for run in server.find("flow_runs", flow_runs=waiting) if run["auto_scheduled"]]

    assert scheduled() == []
    answer = services.httpx.post(f"{server.api}/{schedules}", json=[daily], timeout=30)
    (schedule,) = answer.raise_for_status().json()
    try:
        runs = services.wait_for(scheduled, seconds=90, what="a scheduled run")
        first_start = min(run["expected_start_time"] for run in runs)
        assert datetime.fromisoformat(first_start) == start
        assert runs[0]["parameters"]["config"] == parameters["config"]
    finally:
        server.call("DELETE", f"{schedules}/{schedule['id']}").raise_for_status()
    assert scheduled() == []
