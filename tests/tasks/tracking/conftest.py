"""An MLflow database of a test's own, and clients that nobody finds open afterwards."""

import gc
import shutil

import pytest
from mlflow import MlflowClient


@pytest.fixture(autouse=True)
def collected():
    """Leave no open client to be found and complained of in another test."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def up(empty_database, tmp_path, monkeypatch):
    """The address of an MLflow database of this test, which the tasks are told."""
    address = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return address
