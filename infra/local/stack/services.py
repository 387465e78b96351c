"""The Prefect server, the MLflow server and the workers: command lines, variables, and when each is ready."""

import sys
from pathlib import Path

import httpx

from .layout import HOST, Stack, clean_environment
from .passwords import password_file
from .pools import workers_online
from .postgres import database_url
from .processes import Service
from .runs import WORKER

QUERY_SECONDS = "3"  # how often a worker asks for runs; Prefect's own 10 make a short run mostly waiting
WORKER_PREFIX = "worker-"


def prefect_server(stack: Stack) -> Service:
    """Return the Prefect server, with its database in PostgreSQL."""
    folder, port = stack.private("prefect"), stack.ports["prefect"]
    environment = clean_environment(
        PREFECT_HOME=str(folder),
        PREFECT_API_URL=stack.prefect_api,
        PREFECT_SERVER_DATABASE_CONNECTION_URL=database_url(stack, "prefect", driver="asyncpg"),
        # beside its other files: by default the pages are copied into the installed package
        PREFECT_SERVER_UI_STATIC_DIRECTORY=str(folder / "pages"),
        PGPASSFILE=str(password_file(stack, "prefect")),
    )
    return Service(
        name="prefect",
        line=[*_module("prefect"), "server", "start", "--host", HOST, "--port", str(port)],
        environment=environment,
        port=port,
        ready=lambda _: _answers(f"{stack.prefect_api}/health"),
    )


def mlflow_server(stack: Stack) -> Service:
    """Return the MLflow server, with its database in PostgreSQL and artifacts in a folder that it serves."""
    folder, port = stack.private("mlflow"), stack.ports["mlflow"]
    environment = clean_environment(
        MLFLOW_BACKEND_STORE_URI=database_url(stack, "mlflow", driver="psycopg2"),
        MLFLOW_SERVER_ALLOWED_HOSTS=f"{HOST}:*,localhost:*",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",  # they judge conversations: not needed here
        PGPASSFILE=str(password_file(stack, "mlflow")),
    )
    line = ["server", "--host", HOST, "--port", str(port), "--workers", "1"]
    return Service(
        name="mlflow",
        line=[*_module("mlflow"), *line, "--artifacts-destination", str(folder / "artifacts")],
        environment=environment,
        port=port,
        ready=lambda _: _answers(f"{stack.mlflow_url}/health"),
    )


def worker(stack: Stack, pool: str) -> Service:
    """Return the worker of a process work pool.

    It keeps Prefect's files where the command line keeps them, so that both share the stored task results.
    """
    files = stack.home / "prefect"
    files.mkdir(parents=True, exist_ok=True)
    environment = clean_environment(
        CLUSTERUCB_HOME=str(stack.home),
        CLUSTERUCB_CHECKOUT=str(stack.checkout),
        MLFLOW_TRACKING_URI=stack.mlflow_url,
        PREFECT_API_URL=stack.prefect_api,
        PREFECT_HOME=str(files),
        PREFECT_LOCAL_STORAGE_PATH=str(files / "results"),
        PREFECT_RESULTS_DEFAULT_SERIALIZER="json",
        PREFECT_WORKER_QUERY_SECONDS=QUERY_SECONDS,
    )
    return Service(
        name=worker_name(pool),
        line=[*_module("prefect"), "worker", "start", "--pool", pool, "--type", "process", "--name", WORKER],
        environment=environment,
        port=None,
        ready=lambda started_at: workers_online(stack, pool, since=started_at),
    )


def worker_name(pool: str) -> str:
    """Return the name that the worker of a pool has among the services."""
    return f"{WORKER_PREFIX}{pool}"


def known_services(stack: Stack) -> list[str]:
    """Return the services that have a pid file, in the order to stop them in: each before what it needs."""
    order = ["mlflow", "prefect", "postgres"]
    present = {path.stem for path in (stack.folder / "pids").glob("*.json")}
    return [*sorted(present - {*order}), *(name for name in order if name in present)]


def _module(name: str) -> list[str]:
    return [str(Path(sys.prefix) / "bin" / "python"), "-m", name]


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.TransportError:
        return False
