"""Opens MLflow runs and fills them. Reads the adapters that a record names; writes to MLflow."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clusterucb_core.lineage import TrackedDataset
from clusterucb_core.tracks import Metric
from tasks.tracking.connection import open_client, tracking_uri
from tasks.tracking.records import PARENT_TAG, RUN_TAG, Record
from tasks.tracking.registry import keep_adapter

EXPERIMENT = "clusterucb"
MAX_METRICS = 900


def open_run(tags: dict[str, str], *, name: str, home: str) -> str:
    """Return the MLflow run of a run id, opened now unless an earlier attempt did."""
    client = open_client(home)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    in_file = tracking_uri(home).startswith("sqlite")
    location = (Path(home) / "mlflow-artifacts").as_uri() if in_file else None
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


def send_record(run_id: str, record: Record, home: str) -> None:
    """Send a record; a run that already holds it is left as it is."""
    from mlflow.entities import Param, RunTag

    client = open_client(home)
    if client.get_run(run_id).info.status == "FINISHED":
        return
    tags = [RunTag(key, value) for key, value in record.tags.items()]
    client.log_batch(
        run_id, params=[Param(key, value) for key, value in record.parameters.items()], tags=tags
    )
    _send_metrics(client, run_id, record.metrics)
    _send_datasets(client, run_id, record.datasets)
    _send_files(client, run_id, record)
    for adapter in record.adapters:
        keep_adapter(client, run_id, adapter)
    for nested in record.nested:
        tags = nested.tags | {PARENT_TAG: run_id}
        own = open_run(tags, name=nested.name, home=home)
        send_record(own, nested.model_copy(update={"tags": tags}), home)
    # last: a run that is killed before is sent once more by its next attempt
    client.set_terminated(run_id)


def _send_metrics(client: Any, run_id: str, metrics: Sequence[Metric]) -> None:
    from mlflow.entities import Metric as MlflowMetric

    for start in range(0, len(metrics), MAX_METRICS):
        part = metrics[start : start + MAX_METRICS]
        client.log_batch(run_id, metrics=[MlflowMetric(m.key, m.value, m.timestamp_ms, m.step) for m in part])


def _send_datasets(client: Any, run_id: str, datasets: Sequence[TrackedDataset]) -> None:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs: list[Any] = []
    for item in datasets:
        source = CodeDatasetSource(tags=item.facts)  # no source of MLflow's own stands for a table of DuckDB
        described = MetaDataset(source, name=item.name, digest=item.digest)
        dataset = Dataset(
            name=item.name,
            digest=item.digest,
            source_type="code",
            source=described.source.to_json(),
            profile=json.dumps({"num_rows": item.rows}),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", item.context)]))
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _send_files(client: Any, run_id: str, record: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in record.files.items():
            (Path(folder) / name).write_text(content, encoding="utf-8")
        for name, image in record.images.items():
            (Path(folder) / name).write_bytes(image)
        client.log_artifacts(run_id, folder)
