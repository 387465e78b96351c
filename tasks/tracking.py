"""Tasks that mirror a run to MLflow: parameters, metrics, configuration and selection, linked both ways.

Where MLflow cannot be reached and the run may go on without it, what it should have received is kept below
`tracking-buffer/` in the state folder and sent with the next run that reaches it.
"""

import base64
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from pydantic import Base64Bytes, Field

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.comparison import CHART, REPLAYS, TABLE, ComparisonResult
from clusterucb_core.errors import TrackingUnavailable
from clusterucb_core.frozen import Frozen
from clusterucb_core.planning import RunPlan
from clusterucb_core.stages.comparison_summary import SettingSummary
from clusterucb_core.stages.summary import TargetOutcome
from clusterucb_core.tracks import (
    Metric,
    run_files,
    run_metrics,
    run_parameters,
    run_tags,
    setting_metrics,
    setting_parameters,
)

logger = logging.getLogger(__name__)

EXPERIMENT = "clusterucb"
RUN_TAG = "clusterucb.run_id"
PARENT_TAG = "mlflow.parentRunId"
MAX_METRICS = 900
BUFFER = "tracking-buffer"


class Tracking(Frozen):
    """The MLflow run of a pipeline run; `mlflow_run_id` is None while MLflow cannot be reached."""

    mlflow_run_id: str | None
    tags: dict[str, str]


class Record(Frozen):
    """Everything that MLflow keeps of one run, its images and the runs nested in it included."""

    tags: dict[str, str]
    parameters: dict[str, str]
    metrics: tuple[Metric, ...]
    files: dict[str, str]
    images: dict[str, Base64Bytes] = Field(default_factory=dict)
    name: str = ""
    nested: tuple["Record", ...] = ()


@task(name="start tracking")
def start_tracking(plan: RunPlan, flow_run_id: str | None, flow_run_url: str | None) -> Tracking:
    """Open the MLflow run of this run id, or the one that an earlier attempt opened.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, and the run is to fail without it.
    """
    return _start(plan, _tags(plan, flow_run_id, flow_run_url), name=_run_name(plan))


@task(name="start tracking comparison")
def start_comparison_tracking(plan: RunPlan, flow_run_id: str | None, flow_run_url: str | None) -> Tracking:
    """Open the MLflow run of this comparison, or the one that an earlier attempt opened.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, and the run is to fail without it.
    """
    return _start(plan, _tags(plan, flow_run_id, flow_run_url), name=f"compare {_run_name(plan)}")


@task(name="finish tracking")
def finish_tracking(plan: RunPlan, tracking: Tracking, outcomes: Sequence[TargetOutcome]) -> None:
    """Send parameters, metrics, configuration and the selection of every target.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, and the run is to fail without it.
    """
    record = Record(
        tags=tracking.tags | run_tags(outcomes),
        parameters=run_parameters(plan.config),
        metrics=tuple(run_metrics(outcomes)),
        files=run_files(plan.config, outcomes),
    )
    _finish(plan, tracking, record)


@task(name="finish tracking comparison")
def finish_comparison_tracking(plan: RunPlan, tracking: Tracking, result: ComparisonResult) -> None:
    """Send the table, the replays and the chart, and a nested run for every policy and budget.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, and the run is to fail without it.
    """
    folder = Path(result.folder)
    record = Record(
        tags=tracking.tags,
        parameters=run_parameters(plan.config),
        metrics=(),
        files={name: (folder / name).read_text(encoding="utf-8") for name in (TABLE, REPLAYS)},
        images={CHART: base64.b64encode((folder / CHART).read_bytes())},
        name=f"compare {_run_name(plan)}",
        nested=tuple(_setting_record(plan, line) for line in result.settings),
    )
    _finish(plan, tracking, record)


def _run_name(plan: RunPlan) -> str:
    return f"{'+'.join(target.settings.name for target in plan.targets)} {plan.run_id[:8]}"


def _setting_record(plan: RunPlan, line: SettingSummary) -> Record:
    target = f"{line.target} " if len(plan.targets) > 1 else ""
    budget = "" if line.budget_fraction is None else f" {line.budget_fraction:g}"
    return Record(
        tags={RUN_TAG: fingerprint(plan.run_id, line.target, line.policy, line.budget_fraction)},
        parameters=setting_parameters(line),
        metrics=tuple(setting_metrics(line)),
        files={},
        name=f"{target}{line.policy}{budget}",
    )


def _tags(plan: RunPlan, flow_run_id: str | None, flow_run_url: str | None) -> dict[str, str]:
    return {
        RUN_TAG: plan.run_id,
        "prefect.flow_run_id": flow_run_id or "",
        "prefect.flow_run_url": flow_run_url or "",
    }


def _start(plan: RunPlan, tags: dict[str, str], *, name: str) -> Tracking:
    try:
        run_id = _open_run(tags, name=name, home=plan.workspace.home)
    except _unreachable() as error:
        return _without(plan, tags, error)
    _link(run_id, plan.workspace.home)
    return Tracking(mlflow_run_id=run_id, tags=tags)


def _finish(plan: RunPlan, tracking: Tracking, record: Record) -> None:
    home = plan.workspace.home
    if tracking.mlflow_run_id is None:
        _keep(record, plan.run_id, home)
        return
    try:
        _send(tracking.mlflow_run_id, record, home)
        _flush(home)
    except _unreachable() as error:
        _without(plan, tracking.tags, error)
        _keep(record, plan.run_id, home)


def _unreachable() -> tuple[type[Exception], ...]:
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, requests.RequestException


def _without(plan: RunPlan, tags: dict[str, str], error: Exception) -> Tracking:
    uri = _uri(plan.workspace.home)
    seen = f"MLflow at {_masked(uri, uri)} did not take this run ({_masked(str(error), uri)})"
    if plan.execution.when_tracking_is_down == "fail":
        # no cause: its text may name the address with its password, and Prefect keeps what is logged
        raise TrackingUnavailable(
            f"{seen}; start it or correct MLFLOW_TRACKING_URI, or set execution.when_tracking_is_down=buffer "
            "to go on and send later what it should keep"
        ) from None
    logger.warning("%s; what it should keep waits in tracking-buffer/", seen)
    return Tracking(mlflow_run_id=None, tags=tags)


def _uri(home: str) -> str:
    """Return the user's own tracking URI, else the SQLite file of the state folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(home) / 'mlflow.db'}"


def _masked(text: str, address: str) -> str:
    """Return a text with the user and password of an address masked."""
    user, at, _ = urlsplit(address).netloc.rpartition("@")
    return text.replace(user + at, "***@") if at else text


def _client(home: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(_uri(home))


def _open_run(tags: dict[str, str], *, name: str, home: str) -> str:
    client = _client(home)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    location = (Path(home) / "mlflow-artifacts").as_uri() if _uri(home).startswith("sqlite") else None
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(EXPERIMENT, artifact_location=location)
    )
    found = client.search_runs(
        [experiment_id], filter_string=f"tags.`{RUN_TAG}` = '{tags[RUN_TAG]}'", max_results=1
    )
    if not found:
        return client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    run_id = found[0].info.run_id
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    return run_id


def _send(run_id: str, record: Record, home: str) -> None:
    """Send a record; a run that already holds it is left as it is."""
    from mlflow.entities import Metric as MlflowMetric
    from mlflow.entities import Param, RunTag

    client = _client(home)
    if client.get_run(run_id).info.status == "FINISHED":
        return
    tags = [RunTag(key, value) for key, value in record.tags.items()]
    client.log_batch(
        run_id, params=[Param(key, value) for key, value in record.parameters.items()], tags=tags
    )
    for start in range(0, len(record.metrics), MAX_METRICS):
        part = record.metrics[start : start + MAX_METRICS]
        client.log_batch(run_id, metrics=[MlflowMetric(m.key, m.value, m.timestamp_ms, m.step) for m in part])
    with tempfile.TemporaryDirectory() as folder:
        for name, content in record.files.items():
            (Path(folder) / name).write_text(content, encoding="utf-8")
        for name, image in record.images.items():
            (Path(folder) / name).write_bytes(image)
        client.log_artifacts(run_id, folder)
    for nested in record.nested:
        tags = nested.tags | {PARENT_TAG: run_id}
        _send(_open_run(tags, name=nested.name, home=home), nested.model_copy(update={"tags": tags}), home)
    client.set_terminated(run_id)


def _keep(record: Record, run_id: str, home: str) -> None:
    """Keep a record until a later run reaches MLflow; a killed run leaves no half of one."""
    buffer = Path(home) / BUFFER
    buffer.mkdir(parents=True, exist_ok=True)
    draft = buffer / f"{run_id}.draft"
    draft.write_text(record.model_dump_json(), encoding="utf-8")
    draft.replace(buffer / f"{run_id}.json")


def _flush(home: str) -> None:
    """Send what earlier runs could not."""
    for path in sorted((Path(home) / BUFFER).glob("*.json")):
        record = Record.model_validate_json(path.read_text(encoding="utf-8"))
        _send(_open_run(record.tags, name=record.name or path.stem[:8], home=home), record, home)
        path.unlink()


def _link(run_id: str, home: str) -> None:
    address = _masked(_uri(home), _uri(home))
    experiment = _client(home).get_run(run_id).info.experiment_id
    page = f"#/experiments/{experiment}/runs/{run_id}"
    if address.startswith("http"):
        link = f"{address.rstrip('/')}/{page}"
        create_link_artifact(key="mlflow-run", link=link, link_text=f"MLflow run {run_id}")
        return
    # a database is no address that a browser can open
    text = (
        f"MLflow run `{run_id}`: start `mlflow ui --backend-store-uri {address}`, then open `/{page}` there"
    )
    create_markdown_artifact(text, key="mlflow-run")
