"""Adapters in the model registry: a version a run, and the alias on the lowest loss on the same rows."""

from pathlib import Path

import mlflow.artifacts
import pytest
from mlflow import MlflowClient

from clusterucb_core.lineage import TrackedAdapter
from clusterucb_core.lm.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tasks.tracking.records import RUN_TAG
from tasks.tracking.registry import BEST, LOSS_TAG, ROWS_TAG, keep_adapter

MODEL = "clusterucb-sums"


@pytest.fixture
def client(up):
    return MlflowClient(up)


@pytest.fixture
def experiment(client, tmp_path):
    return client.create_experiment("adapters", artifact_location=(tmp_path / "artifacts").as_uri())


@pytest.fixture
def keep(client, experiment, tmp_path):
    """Keep an adapter with a loss on some test rows; returns its MLflow run."""

    def keep_one(run_id, loss, rows="rows", run=None):
        folder = tmp_path / f"checkpoint of {run_id}"
        folder.mkdir(exist_ok=True)
        (folder / ADAPTER_CONFIG).write_text(f'{{"run": "{run_id}"}}')
        (folder / ADAPTER_WEIGHTS).write_bytes(run_id.encode())
        (folder / "moments.safetensors").write_bytes(b"never kept")
        tags = {RUN_TAG: run_id, "clusterucb.target": "sums", "clusterucb.selection_version": "3"}
        adapter = TrackedAdapter(
            model=MODEL, place="adapter", folder=str(folder), tags=tags, test_loss=loss, test_digest=rows
        )
        run = run or client.create_run(experiment).info.run_id
        keep_adapter(client, run, adapter)
        return run

    return keep_one


def best(client):
    return client.get_model_version_by_alias(MODEL, BEST).tags[RUN_TAG]


def versions(client):
    return {item.tags[RUN_TAG]: item for item in client.search_model_versions(f"name = '{MODEL}'")}


def test_a_version_names_what_it_comes_from_and_gives_the_two_files_of_an_adapter_back(client, keep, up):
    run = keep("first", 0.1 + 0.2)
    (version,) = versions(client).values()
    assert (version.run_id, version.status) == (run, "READY")
    assert version.tags["clusterucb.selection_version"] == "3"
    assert float(version.tags[LOSS_TAG]) == 0.1 + 0.2
    assert version.tags[ROWS_TAG] == "rows"
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}@{BEST}", tracking_uri=up))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        ADAPTER_CONFIG: b'{"run": "first"}',
        ADAPTER_WEIGHTS: b"first",
    }


def test_the_alias_moves_to_a_lower_loss_only_and_stays_with_the_first_of_equals(client, keep):
    for run_id, loss, holder in (
        ("first", 2.0, "first"),
        ("worse", 3.0, "first"),
        ("equal", 2.0, "first"),
        ("better", 1.0, "better"),
        ("between", 1.5, "better"),
    ):
        keep(run_id, loss)
        assert best(client) == holder
    assert len(versions(client)) == 5


def test_losses_on_other_rows_are_not_compared(client, keep):
    keep("old rows", 1.0)
    keep("new rows", 2.0, rows="other")
    assert best(client) == "new rows"
    keep("new rows, worse", 3.0, rows="other")
    assert best(client) == "new rows"


def test_a_run_repeated_registers_nothing_twice_and_still_sets_an_alias_that_is_missing(client, keep):
    run = keep("first", 2.0)
    client.delete_registered_model_alias(MODEL, BEST)
    keep("first", 2.0, run=run)
    assert len(versions(client)) == 1
    assert best(client) == "first"


def test_an_adapter_without_a_test_loss_is_registered_and_never_best(client, keep):
    keep("untested", None, rows=None)
    (version,) = versions(client).values()
    assert LOSS_TAG not in version.tags
    assert version.aliases == []


def test_many_versions_are_all_compared(client, keep, monkeypatch):
    keep("lowest", 0.5)
    search = client.search_model_versions
    monkeypatch.setattr(client, "search_model_versions", lambda *a, **k: search(*a, **k, max_results=1))
    for number in range(3):
        keep(f"later {number}", 1.0 + number)
    assert best(client) == "lowest"


def test_an_adapter_that_is_gone_is_left_out_with_a_warning(client, tmp_path, caplog):
    adapter = TrackedAdapter(
        model=MODEL, place="adapter", folder=str(tmp_path / "gone"), tags={RUN_TAG: "first"},
        test_loss=1.0, test_digest="rows",
    )  # fmt: skip
    keep_adapter(client, "no run", adapter)
    assert "adapter_config.json and adapter_model.safetensors is gone from" in caplog.text
    assert client.search_registered_models() == []
