"""Flows called in this process, and faults of disks and services told in one sentence each."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager

from clusterucb_core.errors import ClusterUcbError, ServerUnavailable, StorageFull, StorageNotWritable
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.storage_faults import NEARLY_NOTHING_BYTES, Places, existing, full_disk, storage_fault
from clusterucb_core.workspace import Workspace
from flows.home import state_folder
from flows.orchestrator import check_server, served, server_fault, start_own_server
from flows.run_log import failures_told_by_caller
from flows.runners import choose_runner, mapped_on, visible_gpus
from flows.turns import turn

TOLD = (StorageFull, StorageNotWritable)


@contextmanager
def called_here(execution: ExecutionSettings) -> Generator[None]:
    """Call flows in this process: its Prefect server is there first, and is not waited for at the end."""
    with plain_faults(execution), failures_told_by_caller(), served():
        check_server(state_folder())
        start_own_server()
        yield


@contextmanager
def at_work(execution: ExecutionSettings) -> Generator[None]:
    """Work in the state folder, in a flow's own body: in turn, on the executor that the settings name.

    Raises:
        ClusterUcbError: as `plain_faults`; or no executor has the name.
    """
    with (
        plain_faults(execution),
        turn(state_folder()),
        mapped_on(choose_runner(execution, visible_gpus())),
    ):
        yield


@contextmanager
def plain_faults(execution: ExecutionSettings) -> Generator[None]:
    """Let a block raise a full or read-only disk and a Prefect server that is away as one sentence.

    Raises:
        StorageFull: a disk has no room.
        StorageNotWritable: a folder cannot be written, or its disk failed.
        ServerUnavailable: the Prefect server did not answer.
    """
    workspace = Workspace(home=str(state_folder()), storage_root=execution.storage_root)
    try:
        yield
    except TOLD:
        raise
    except Exception as error:
        told = plain_fault(error, workspace.places)
        if told is None or told is error:
            raise
        raise told from error


def plain_fault(error: BaseException, places: Places) -> ClusterUcbError | None:
    """Return what an error tells of a disk or of the Prefect server, as a sentence; None where nothing."""
    if (told := storage_fault(error, places)) is not None:
        return told
    away = error if isinstance(error, ServerUnavailable) else server_fault(error)
    home = existing(state_folder())
    # the server of a run's own keeps its database there, and says no more than that it failed
    if away is not None and shutil.disk_usage(home).free < NEARLY_NOTHING_BYTES:
        return full_disk(home, places)
    return away
