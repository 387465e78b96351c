"""`doctor`: whether this machine and the configured services can run the pipeline.

Reads environment variables and asks the services that they name; changes nothing.
"""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import typer

from clusterucb_core.errors import ClusterUcbError, MissingArtifact
from clusterucb_core.masking import masked, masked_address
from flows.commands.arguments import AsJson
from flows.commands.failures import FAILED
from flows.health import ask_health
from flows.home import state_folder
from flows.rendering import print_json, print_table, size

PACKAGES = (
    "clusterucb", "torch", "transformers", "peft", "accelerate", "lm_eval", "prefect", "mlflow", "duckdb",
    "polars", "scikit-learn", "numpy",
)  # fmt: skip
# What breaks the server or its scheduler: the first version that does, or the only one that is known to work.
TOO_NEW = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
EXACT = {"prefect": "3.8.8"}
TIMEOUT_S = 5
LITTLE_BYTES = 5 * 2**30
TOO_LITTLE_BYTES = 200 * 2**20

Status = Literal["ok", "warning", "unusable"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str


def doctor(as_json: AsJson = False) -> None:
    """Examine versions, devices, services and disk.

    Exits with 1 if something is unusable.
    """
    findings = examine(state_folder())
    usable = all(finding.status != "unusable" for finding in findings)
    if as_json:
        print_json({"usable": usable, "findings": [asdict(finding) for finding in findings]})
    else:
        print_table(["", "status", ""], [[f.name, f.status, f.detail] for f in findings], left=3)
    if not usable:
        raise typer.Exit(FAILED)


def examine(home: Path) -> list[Finding]:
    """Return everything that was looked at, in the order to read it.

    Args:
        home: the state folder; it need not exist.
    """
    return [
        Finding(name="Python", status="ok", detail=platform.python_version()),
        *(_package(name) for name in PACKAGES),
        *_pins(),
        _devices(),
        _folder("state folder", home),
        _folder("artifacts", home / "artifacts"),
        _catalog(home),
        _tracking(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"),
        _orchestrator(
            os.environ.get("PREFECT_API_URL", ""), Path(os.environ.get("PREFECT_HOME", home / "prefect"))
        ),
        _disk(home),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name=name, status="ok", detail=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            name=name, status="unusable", detail="not installed; run `make demo` or install the locked set"
        )


def _pins() -> Iterator[Finding]:
    for name, limit in TOO_NEW.items():
        found = _package(name)
        if found.status == "ok" and _numbers(found.detail) >= limit:
            wanted = ".".join(map(str, limit))
            detail = f"{found.detail} breaks the Prefect server; install {name}<{wanted}"
            yield Finding(name=name, status="unusable", detail=detail)
        else:
            yield found
    for name, wanted in EXACT.items():
        found = _package(name)
        if found.status == "ok" and found.detail != wanted:
            detail = f"{found.detail} is untested; install {name}=={wanted}"
            yield Finding(name=f"{name} pin", status="warning", detail=detail)


def _numbers(version: str) -> tuple[int, ...]:
    digits = ("".join(c for c in part if c.isdigit()) for part in version.split("+")[0].split(".")[:2])
    return tuple(int(part or 0) for part in digits)


def _devices() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # a torch whose libraries do not load raises OSError
        return Finding(name="devices", status="unusable", detail=f"torch cannot be imported: {error}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding(
        name="devices", status="ok", detail=f"{cores} CPU cores, CUDA: {', '.join(names) or 'none'}"
    )


def _folder(name: str, folder: Path) -> Finding:
    existing = _existing(folder)
    if not existing.is_dir():
        return Finding(
            name=name, status="unusable", detail=f"{existing} is no folder; set CLUSTERUCB_HOME to one"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            name=name, status="unusable", detail=f"{existing} cannot be written; set CLUSTERUCB_HOME"
        )
    return Finding(
        name=name, status="ok", detail=str(folder) + ("" if folder.exists() else " (made by the first run)")
    )


def _catalog(home: Path) -> Finding:
    from clusterucb_core.store import list_selections, open_catalog
    from clusterucb_core.workspace import Workspace

    path = Workspace(home=str(home)).catalog
    try:
        with open_catalog(path, read_only=True, timeout_s=TIMEOUT_S) as con:
            detail = f"{path}, {len(list_selections(con))} selection versions"
    except MissingArtifact:
        detail = f"{path} (made by the first run)"
    except ClusterUcbError as error:
        return Finding(name="catalog", status="unusable", detail=str(error))
    return Finding(name="catalog", status="ok", detail=detail)


def _tracking(address: str) -> Finding:
    shown = masked_address(address)
    if address.startswith(("http://", "https://")):
        return _service("MLflow", address)
    if address.startswith("sqlite:///"):
        return _sqlite("MLflow", Path(address.removeprefix("sqlite:///")))
    if "://" in address and not address.startswith("file:"):
        return Finding(
            name="MLflow", status="warning", detail=f"{shown} was not tried: doctor knows http and sqlite"
        )
    return _folder("MLflow", Path(urlsplit(address).path or "."))


def _orchestrator(address: str, home: Path) -> Finding:
    if address:
        return _service("Prefect", address)
    found = _folder("Prefect", home)
    if found.status != "ok":
        return found
    return replace(found, detail=f"a server of its own in each run, {found.detail}")


def _sqlite(name: str, path: Path) -> Finding:
    import sqlite3

    if not path.exists():
        return _folder(name, path.parent)
    try:
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=TIMEOUT_S) as con:
            con.execute("SELECT count(*) FROM sqlite_master").fetchone()
        con.close()
    except sqlite3.Error as error:
        return Finding(name=name, status="unusable", detail=f"{path}: {error}; move the file away or mend it")
    if not os.access(path, os.W_OK):
        return Finding(
            name=name, status="unusable", detail=f"{path} cannot be written; correct its permissions"
        )
    return Finding(name=name, status="ok", detail=str(path))


def _service(name: str, address: str) -> Finding:
    import httpx

    shown = masked_address(address)
    try:
        answer = ask_health(address, seconds=TIMEOUT_S)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        why = masked(str(error), address)
        detail = f"{shown} cannot be reached ({why}); start it, or unset its address to use the local one"
        return Finding(name=name, status="unusable", detail=detail)
    if answer.is_success:
        return Finding(name=name, status="ok", detail=shown)
    status = "warning" if answer.status_code in {401, 403} else "unusable"
    told = f"{shown} answers {answer.status_code} {answer.reason_phrase}"
    return Finding(name=name, status=status, detail=told)


def _disk(home: Path) -> Finding:
    free = shutil.disk_usage(_existing(home)).free
    status: Status = "unusable" if free < TOO_LITTLE_BYTES else "warning" if free < LITTLE_BYTES else "ok"
    return Finding(name="free disk", status=status, detail=f"{size(free)} at {_existing(home)}")


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())
