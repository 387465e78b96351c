"""Where MLflow is, and the errors that it does not answer with. Reads environment variables."""

import os
from pathlib import Path
from typing import Any


def tracking_uri(home: str) -> str:
    """Return the user's own tracking URI, else the SQLite file of the state folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(home) / 'mlflow.db'}"


def open_client(home: str) -> Any:
    """Return a client of the tracking server and the model registry."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(home))


def refused(error: Exception) -> bool:
    """Tell whether MLflow is there and refuses what it was sent, and would refuse it again."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.error_code in (
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
    )


def unreachable() -> tuple[type[Exception], ...]:
    """Return the errors with which MLflow, its database or its server refuse."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, requests.RequestException
