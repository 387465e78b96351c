"""The executor of the shard tasks is the one that the settings name, however the flow was started."""

import os
import subprocess
import sys

import pytest
from prefect import flow, task
from prefect.settings import PREFECT_API_URL, temporary_settings

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.workspace import Workspace
from flows.ray_cluster import (
    Ray,
    check_nodes,
    gpus_of_a_task,
    is_here,
    worker_variables,
    workers_workspace,
)
from flows.runners import choose_runner, mapped_on

ELSEWHERE = "203.0.113.7"  # kept for documents: no machine has it
SERVER = "http://prefect.internal:4200/api"


def ray(**settings):
    return choose_runner(ExecutionSettings(runner="ray", **settings), gpus=0)


def processes_of(execution):
    """Return the ids of the processes that three mapped tasks run in."""

    @task
    def process_id(_number: int) -> int:
        return os.getpid()

    @flow(persist_result=False)
    def mapping() -> list[int]:
        with mapped_on(choose_runner(execution, gpus=0)):
            return [future.result() for future in process_id.map([1, 2, 3])]

    return mapping()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_flow_maps_its_tasks_on_threads_of_its_own_process():
    assert processes_of(ExecutionSettings(runner="threads", workers=2)) == [os.getpid()] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_flow_declared_with_threads_maps_its_tasks_on_processes():
    found = processes_of(ExecutionSettings(runner="processes", workers=1))
    assert len(set(found)) == 1
    assert os.getpid() not in found


@pytest.mark.parametrize(
    ("workers", "gpus", "expected"), [("auto", 0, 1), ("auto", 3, 3), (2, 0, 2), (2, 8, 2)]
)
def test_workers_are_one_for_each_gpu_unless_they_are_given(workers, gpus, expected):
    assert choose_runner(ExecutionSettings(workers=workers), gpus).workers == expected


def test_an_executor_of_another_name_is_refused_with_the_known_ones():
    with pytest.raises(InvalidConfig, match=r"runner='trains'.*known: threads, processes, ray"):
        choose_runner(ExecutionSettings(runner="trains"), gpus=0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Ray(workers=1, gpus_per_task=None)),
        ({"workers": 3, "device": "cpu"}, Ray(workers=3, gpus_per_task=0)),
        ({"ray_address": "", "gpus_per_task": 0.5}, Ray(workers=1, gpus_per_task=0.5)),
        ({"ray_address": "auto"}, Ray(workers=1, address="auto", gpus_per_task=None)),
        (
            {"ray_address": "ray://127.0.0.1:10001", "storage_root": "/shared"},
            Ray(workers=1, address="ray://127.0.0.1:10001", gpus_per_task=None, shared=True),
        ),
        ({"storage_root": "s3://bucket/prefix"}, Ray(workers=1, gpus_per_task=None, shared=True)),
    ],
)
def test_ray_is_what_the_settings_ask_for(settings, expected):
    assert ray(**settings) == expected


def test_ray_is_imported_by_those_only_who_ask_for_it():
    code = (
        "import sys\n"
        "from clusterucb_core.execution import ExecutionSettings\n"
        "from flows.runners import choose_runner\n"
        "choose_runner(ExecutionSettings(runner='ray'), 0)\n"
        "sys.exit(len({'ray', 'prefect_ray', 'torch'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_ray_that_is_not_installed_is_refused_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "prefect_ray" else name)
    with pytest.raises(
        InvalidConfig, match=r"needs prefect-ray, not installed.*pip install 'clusterucb\[ray\]'"
    ):
        ray()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"device": "cuda:1"}, "device=cuda:1 names one GPU"),
        ({"storage_root": "shared/artifacts"}, "storage_root=shared/artifacts is relative"),
        ({"ray_address": f"ray://{ELSEWHERE}:10001"}, "another machine.*set execution.storage_root"),
        ({"ray_address": f"{ELSEWHERE}:6379"}, "another machine.*set execution.storage_root"),
    ],
)
def test_ray_is_refused_where_workers_would_not_find_the_gpu_or_the_files(settings, reason):
    with pytest.raises(InvalidConfig, match=reason):
        ray(**settings)


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:4200/api", "http://localhost:4200/api"])
def test_another_machine_needs_a_prefect_server_that_it_can_reach(address):
    wanted = {"ray_address": f"ray://{ELSEWHERE}:10001", "storage_root": "/shared"}
    with (
        temporary_settings({PREFECT_API_URL: address}),
        pytest.raises(InvalidConfig, match=f"PREFECT_API_URL={address or ''} cannot be reached from there"),
    ):
        ray(**wanted)
    with temporary_settings({PREFECT_API_URL: SERVER}):
        assert ray(**wanted).shared


def test_a_cluster_whose_nodes_are_elsewhere_needs_a_shared_folder():
    runner = ray(ray_address="127.0.0.1:6379")
    check_nodes(runner, ["127.0.0.1"])
    with pytest.raises(InvalidConfig, match=rf"nodes on other machines \({ELSEWHERE}\).*storage_root"):
        check_nodes(runner, ["127.0.0.1", ELSEWHERE])
    with temporary_settings({PREFECT_API_URL: SERVER}):
        check_nodes(runner.model_copy(update={"shared": True}), ["127.0.0.1", ELSEWHERE])


@pytest.mark.parametrize(
    ("asked", "there", "expected"),
    [(None, 0, 0), (None, 4, 1), (None, 0.5, 0.5), (0, 4, 0), (0.5, 1, 0.5), (2, 4, 2)],
)
def test_a_shard_task_asks_for_one_gpu_where_there_are_any(asked, there, expected):
    assert gpus_of_a_task(Ray(workers=1, gpus_per_task=asked), there) == expected


def test_more_gpus_than_the_cluster_has_are_refused_rather_than_waited_for():
    with pytest.raises(InvalidConfig, match=r"gpus_per_task=1, but the Ray cluster has 0 GPUs"):
        gpus_of_a_task(Ray(workers=1, gpus_per_task=1), 0)


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", True), ("localhost", True), (ELSEWHERE, False)])
def test_this_machine_knows_its_own_addresses(host, expected):
    assert is_here(host) is expected


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_workers_get_the_threads_and_the_server_of_the_flow_and_no_token(monkeypatch):
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("HF_TOKEN", "secret")

    @flow(persist_result=False)
    def variables() -> dict[str, str]:
        return worker_variables()

    found = variables()
    assert found["OMP_NUM_THREADS"] == str(torch.get_num_threads())
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"
    assert found["PREFECT_API_URL"] == PREFECT_API_URL.value()
    assert "secret" not in found.values()


@pytest.mark.parametrize(
    ("runner", "root", "on_node"),
    [
        ("ray", "s3://bucket", True),
        ("ray", "/shared", False),
        ("ray", None, False),
        ("threads", "s3://bucket", False),
    ],
)
def test_workers_of_ray_share_no_folder_where_an_object_store_is_there(runner, root, on_node):
    workspace = Workspace(home="/state", storage_root=root)
    found = workers_workspace(workspace, ExecutionSettings(runner=runner, storage_root=root))
    assert found == workspace.model_copy(update={"on_node": on_node})
