"""Faults of disks and of the Prefect server, raised as one sentence each, and other errors as they are."""

import errno
import os
import shutil

import pytest

from clusterucb_core.errors import ServerUnavailable, StorageFull, StorageNotWritable
from clusterucb_core.execution import ExecutionSettings
from flows import calls
from flows.calls import plain_faults


def raise_within(error, *, storage_root=None):
    with plain_faults(ExecutionSettings(storage_root=storage_root)):
        raise error


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, StorageFull), (errno.EROFS, StorageNotWritable)])
def test_a_fault_of_the_disk_names_the_place_and_has_the_error_as_its_cause(home, number, kind):
    (home / "artifacts" / "tokens").mkdir(parents=True)
    error = OSError(number, os.strerror(number), str(home / "artifacts" / "tokens" / "rows.npy"))
    with pytest.raises(kind, match=f"{home / 'artifacts'} is.*set execution.storage_root") as caught:
        raise_within(error)
    assert caught.value.__cause__ is error


def test_a_storage_root_is_a_place_of_its_own(home, tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "root" / "x"))
    (tmp_path / "root").mkdir()
    with pytest.raises(StorageFull, match=f"^the disk of {tmp_path / 'root'} is full.*storage_root"):
        raise_within(error, storage_root=str(tmp_path / "root"))


@pytest.mark.parametrize("error", [ValueError("a row"), KeyboardInterrupt(), StorageFull("told already")])
def test_other_errors_are_raised_as_they_are(home, error):
    with pytest.raises(type(error)) as caught:
        raise_within(error)
    assert caught.value is error


def test_an_own_server_without_room_for_its_database_tells_of_the_disk(home, monkeypatch):
    away = ServerUnavailable("the Prefect server of the run's own could not be started")
    with pytest.raises(ServerUnavailable) as caught:
        raise_within(away)
    assert caught.value is away
    usage = type("Usage", (), {"free": 4096, "total": 2**21})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        StorageFull, match=r"is full: what was to be written did not fit, 0\.0 MiB of 2\.0 MiB"
    ):
        raise_within(away)
    assert calls.plain_fault(ValueError("a row"), {home: "CLUSTERUCB_HOME"}) is None
