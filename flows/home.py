"""The state folder and the settings of the services that run in this process.

Reads and sets environment variables; imported before Prefect and MLflow are.
"""

import os
from pathlib import Path

HOME_VARIABLE = "CLUSTERUCB_HOME"
OWN_LOGGERS = ("clusterucb_core", "flows", "tasks")


def state_folder() -> Path:
    """Return the state folder: `CLUSTERUCB_HOME`, else `.clusterucb` in the working folder."""
    return Path(os.environ.get(HOME_VARIABLE) or ".clusterucb").expanduser().absolute()


def configure_services(home: Path) -> None:
    """Give Prefect and MLflow their folders below the state folder, unless the user has configured them."""
    (home / "prefect").mkdir(parents=True, exist_ok=True)  # Prefect makes one folder, but not its parents
    defaults = {
        HOME_VARIABLE: str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "prefect" / "results"),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        # a server that answers nothing is asked six times, as is one that is away
        "PREFECT_API_REQUEST_TIMEOUT": "20",
        "PREFECT_CLIENT_MAX_RETRIES": "5",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
        # the UI shows what these say; outside a run there is no page to show it on
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(OWN_LOGGERS),
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "DO_NOT_TRACK": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    _set_defaults(defaults)
    configure_tracking(home)


def configure_tracking(home: Path) -> None:
    """Give MLflow its database in the state folder, unless the user has configured another.

    A flow calls this too: where a worker starts it, nothing else has. MLflow's own seven retries make a run
    wait four minutes for a server that is down; two retries, of 15 seconds each at most, keep it below one.
    """
    defaults = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    _set_defaults(defaults)


def _set_defaults(defaults: dict[str, str]) -> None:
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
