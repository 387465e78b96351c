"""Where the stack has its files, and its addresses; reads CLUSTERUCB_HOME and the variables of the ports."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import StackError

HOST = "127.0.0.1"
CHECKOUT = Path(__file__).resolve().parents[3]
DEFAULT_PORTS = {"prefect": 4200, "mlflow": 5000, "postgres": 5433}

# Nothing that the stack starts reports to anyone.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# A user's own settings of these services would reach other servers, or be sent to ours.
FOREIGN = ("PREFECT_", "MLFLOW_", "PG", "CLUSTERUCB_HOME", "CLUSTERUCB_CHECKOUT")


@dataclass(frozen=True)
class Stack:
    """One local stack.

    Attributes:
        checkout: the project's folder; workers run flows from there.
        home: the state folder, absolute; the stack has `stack` below it.
        ports: the port of `prefect`, `mlflow` and `postgres`.
    """

    checkout: Path
    home: Path
    ports: Mapping[str, int]

    @property
    def folder(self) -> Path:
        """The folder of everything that the stack writes."""
        return self.home / "stack"

    @property
    def prefect_url(self) -> str:
        """The address of the Prefect server's pages."""
        return f"http://{HOST}:{self.ports['prefect']}"

    @property
    def prefect_api(self) -> str:
        """The address of the Prefect server's API."""
        return f"{self.prefect_url}/api"

    @property
    def mlflow_url(self) -> str:
        """The address of the MLflow server."""
        return f"http://{HOST}:{self.ports['mlflow']}"

    def private(self, name: str) -> Path:
        """Return a folder below the stack's that only its owner can enter, made where absent."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        return folder

    def pid_file(self, service: str) -> Path:
        """Return the file that tells which process a service is."""
        return self.folder / "pids" / f"{service}.json"

    def log(self, service: str) -> Path:
        """Return the file that a service writes its messages to."""
        return self.folder / "logs" / f"{service}.log"


def state_folder() -> Path:
    """Return the state folder: `CLUSTERUCB_HOME`, else `.clusterucb` of the checkout."""
    named = os.environ.get("CLUSTERUCB_HOME")
    return Path(named).expanduser().absolute() if named else CHECKOUT / ".clusterucb"


def port_variable(service: str) -> str:
    """Return the name of the variable that sets a service's port."""
    return f"CLUSTERUCB_{service.upper()}_PORT"


def port(service: str, *, given: str | None = None) -> int:
    """Return a service's port: the given one, else that of its variable, else the usual one.

    Raises:
        StackError: what is given or in the variable is no port.
    """
    text = given or os.environ.get(port_variable(service)) or str(DEFAULT_PORTS[service])
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise StackError(
            f"{text!r} is no port for {service}; give a number from 1 to 65535, "
            f"as --{service}-port or {port_variable(service)}"
        )
    return int(text)


def clean_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without settings of the services, and with the given ones."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**kept, **QUIET, **variables}
