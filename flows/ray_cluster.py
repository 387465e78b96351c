"""Ray as the executor of shard tasks: a cluster started here for one run, or an existing one.

Reads environment variables, and sets those that say how Ray starts. Ray carries ids and references only:
what a task reads and writes lies below the storage root: a folder under the same path on every machine, or an
object store, of which each machine has copies of its own.
"""

import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from prefect.settings import get_current_settings
from prefect.task_runners import TaskRunner

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.frozen import Frozen
from clusterucb_core.object_store import is_address
from clusterucb_core.workspace import Workspace
from flows.flow_runs import flow_run_here, server_address

PACKAGES = ("ray", "prefect_ray")
# What a form sends for an empty field, and Ray's own name for a cluster of this process, start one here.
NO_CLUSTER = (None, "", "local")
# How often Ray starts a task again whose worker process was killed.
MAX_RETRIES = 3
# Ray asks for 75 MiB at least; by itself it takes 30 % of a machine's memory for objects that we do not have.
OBJECT_STORE_BYTES = 128 * 2**20
# What a worker computes, and how, must not depend on who started the cluster. No token is among these.
SHARED_VARIABLES = (
    "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM", "HF_HOME", "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "PREFECT_LOGGING_LEVEL",
)  # fmt: skip


class Ray(Frozen):
    """Processes of a Ray cluster.

    Without an address the cluster is one of this machine, for this run. `gpus_per_task` None stands for one
    where the cluster has any. `shared` says that a storage root was given, which other machines may use.
    """

    kind: Literal["ray"] = "ray"
    workers: int
    address: str | None = None
    gpus_per_task: float | None = 0
    shared: bool = False


def ray_runner(execution: ExecutionSettings, workers: int) -> Ray:
    """Return Ray as the settings ask for it.

    Raises:
        InvalidConfig: Ray is not installed, or its workers could not find the files, the GPU or the server.
    """
    _check_installed()
    _check_device(execution)
    _check_places(execution)
    on_gpu = execution.gpus_per_task if execution.gpus_per_task != "auto" else None
    return Ray(
        workers=workers,
        address=None if execution.ray_address in NO_CLUSTER else execution.ray_address,
        gpus_per_task=0 if execution.device == "cpu" and on_gpu is None else on_gpu,
        shared=execution.storage_root is not None,
    )


def ray_task_runner(runner: Ray) -> TaskRunner[Any]:
    """Return the Prefect task runner that starts Ray, or connects to it; a flow run is under way."""
    from prefect_ray.task_runners import RayTaskRunner

    connection: dict[str, Any] = {
        "logging_level": logging.WARNING,
        "runtime_env": {"env_vars": worker_variables()},
    }
    if runner.address is None:
        connection |= {
            "num_cpus": runner.workers,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    # "local" never joins a cluster that happens to run here; RayTaskRunner itself drops the address "auto"
    return RayTaskRunner(init_kwargs={"address": runner.address or "local", **connection})


@contextmanager
def ray_started(runner: Ray) -> Generator[TaskRunner[Any]]:
    """Hold Ray, and the resources that a mapped task asks of it, until the block ends.

    Raises:
        InvalidConfig: there is no such cluster, or it lacks what a shard task needs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if runner.address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # its default, without the warning that it is
    import ray
    from prefect_ray.context import remote_options
    from ray.exceptions import RayError

    with ExitStack() as stack:
        try:
            started = stack.enter_context(ray_task_runner(runner))
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise InvalidConfig(
                f"execution.ray_address={runner.address}: Ray could not be used: {error}; see that the "
                "cluster runs, with this version of Ray and Python, and set RAY_AUTH_MODE=token where it "
                "asks for one; an empty address starts a cluster here"
            ) from error
        check_nodes(runner, [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]])
        gpus = gpus_of_a_task(runner, ray.cluster_resources().get("GPU", 0))
        stack.enter_context(_flow_sent_along())
        stack.enter_context(remote_options(num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES))
        yield started


def workers_workspace(workspace: Workspace, execution: ExecutionSettings) -> Workspace:
    """Return the workspace of shard tasks: with an object store, workers of Ray need no folder in common."""
    return workspace.model_copy(update={"on_node": execution.runner == "ray" and workspace.is_mirrored})


def worker_variables() -> dict[str, str]:
    """Return the environment variables of a worker process.

    It gets this process's number of threads: how a sum is divided moves its last bits. The address is that of
    the server that this flow run has, so that no worker starts one of its own.
    """
    import torch

    shared = {name: os.environ[name] for name in SHARED_VARIABLES if name in os.environ}
    threads = os.environ.get("OMP_NUM_THREADS") or str(torch.get_num_threads())
    return {
        **shared,
        "OMP_NUM_THREADS": threads,
        "PREFECT_API_URL": server_address(),
    }


def gpus_of_a_task(runner: Ray, gpus: float) -> float:
    """Return the GPUs that a shard task asks for.

    Args:
        runner: what the settings ask for.
        gpus: of the whole cluster.

    Raises:
        InvalidConfig: more than the cluster has, for which a task would wait without end.
    """
    wanted = min(1.0, gpus) if runner.gpus_per_task is None else runner.gpus_per_task
    if wanted > gpus:
        raise InvalidConfig(
            f"execution.gpus_per_task={wanted:g}, but the Ray cluster has {gpus:g} GPUs: a shard task would "
            "wait for ever; lower it, or start nodes with GPUs first"
        )
    return wanted


def check_nodes(runner: Ray, addresses: Sequence[str]) -> None:
    """Check that the nodes of a cluster find the files and the server of the run.

    Args:
        runner: what the settings ask for.
        addresses: of the living nodes.

    Raises:
        InvalidConfig: some are other machines, and there is no shared folder, or no server that they reach.
    """
    elsewhere = sorted({address for address in addresses if not is_here(address)})
    if elsewhere:
        what = f"the Ray cluster has nodes on other machines ({', '.join(elsewhere[:3])})"
        _check_shared(what, shared=runner.shared)


def is_here(host: str) -> bool:
    """Return whether a host name or IPv4 address is one of this machine's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))  # the operating system gives a socket own addresses only
        except OSError:
            return False
    return True


def is_loopback(address: str) -> bool:
    """Return whether a URL leads back to the machine that uses it."""
    host = urlsplit(address).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


@contextmanager
def _flow_sent_along() -> Generator[None]:
    """Send the flow along with its tasks where a deployment loaded it from a file."""
    from ray import cloudpickle  # by it, a function of such a module is only a name that no worker can import

    flow = flow_run_here().flow
    assert flow is not None, "the context of a flow run names its flow"
    module = sys.modules[flow.fn.__module__]
    if "." in module.__name__:
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _check_installed() -> None:
    missing = [name.replace("_", "-") for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidConfig(
            f"execution.runner=ray needs {' and '.join(missing)}, not installed here; "
            "pip install 'clusterucb[ray]'"
        )


def _check_device(execution: ExecutionSettings) -> None:
    if execution.device.startswith("cuda:"):
        raise InvalidConfig(
            f"execution.device={execution.device} names one GPU of this machine, but Ray gives each task a "
            "GPU of its own, which is the task's first; set device to cuda or auto"
        )


def _check_places(execution: ExecutionSettings) -> None:
    """Refuse what workers of another working folder or machine could not find."""
    root = execution.storage_root
    if root is not None and not is_address(root) and not Path(root).is_absolute():
        raise InvalidConfig(
            f"execution.storage_root={root} is relative, and workers of Ray have a working folder of their "
            "own; give an absolute path"
        )
    host = _host(execution.ray_address)
    if host is None or is_here(host):
        return
    _check_shared(
        f"execution.ray_address={execution.ray_address} is another machine", shared=root is not None
    )


def _check_shared(what: str, *, shared: bool) -> None:
    if not shared:
        raise InvalidConfig(
            f"{what}, which does not see this machine's state folder; set execution.storage_root to "
            "an object store, such as s3://bucket/prefix, or to a folder that all have under the same path"
        )
    address = get_current_settings().api.url
    if address is None or is_loopback(address):
        raise InvalidConfig(
            f"{what}, and PREFECT_API_URL={address or ''} cannot be reached from there; start a Prefect "
            "server and set PREFECT_API_URL to an address that every node can reach"
        )


def _host(address: str | None) -> str | None:
    """Return the host of a cluster's address; None where it names a cluster of this machine."""
    if address is None or address in {*NO_CLUSTER, "auto"}:
        return None
    return urlsplit(address if "://" in address else f"ray://{address}").hostname
