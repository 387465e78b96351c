"""The executor of the shard tasks is the one that the settings name, however the flow was started."""

import os

import pytest
from prefect import flow, task

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.execution import ExecutionSettings
from flows.runners import choose_runner, mapped_on


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
    with pytest.raises(InvalidConfig, match=r"runner='trains'.*known: threads, processes"):
        choose_runner(ExecutionSettings(runner="trains"), gpus=0)
