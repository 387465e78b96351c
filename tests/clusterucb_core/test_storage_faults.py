"""Faults of a disk as libraries tell of them, on `/dev/full` where they write there, and the sentences."""

import errno
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from clusterucb_core.errors import InvalidPool, StaleArtifact, StorageFull, StorageNotWritable
from clusterucb_core.storage_faults import check_room, check_writable, storage_fault, writing_to

FULL = Path("/dev/full")


@pytest.fixture
def places(tmp_path):
    """A state folder and a storage root on the same disk, neither of them made yet."""
    return {tmp_path / "home": "CLUSTERUCB_HOME", tmp_path / "root": "execution.storage_root"}


def write_text():
    FULL.write_text("a line")


def write_array():
    with FULL.open("wb") as file:
        np.save(file, np.zeros(10))


def write_parquet():
    pl.DataFrame({"a": [1]}).write_parquet(FULL)


def write_csv():
    pl.DataFrame({"a": [1]}).write_csv(FULL)


def copy_table():
    with duckdb.connect() as con:
        con.execute(f"COPY (SELECT * FROM range(100000)) TO '{FULL}' (FORMAT csv)")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("write", [write_text, write_array, write_parquet, write_csv, copy_table])
def test_what_a_library_says_of_a_full_disk_is_understood(write, places):
    with pytest.raises(Exception, match=r"(?i)no space left|os error 28") as caught:
        write()
    told = storage_fault(caught.value, places)
    assert isinstance(told, StorageFull)
    assert "is full" in str(told)
    assert "give the same command again, which goes on from what was computed" in str(told)


def test_the_sentence_names_the_folder_its_room_and_what_to_set(places, tmp_path):
    (tmp_path / "root").mkdir()
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "root" / "features.npy"))
    told = str(storage_fault(error, places))
    total = shutil.disk_usage(tmp_path).total
    assert told.startswith(f"the disk of {tmp_path / 'root'} is full: ")
    assert f"of {total / 2**30:.1f} GiB are free now" in told
    assert told.endswith("or set execution.storage_root to a folder on another disk")


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, StorageFull, "is full"),
        (errno.EDQUOT, StorageFull, "quota of this user"),
        (errno.EFBIG, StorageFull, "`ulimit -f` allows"),
        (errno.EROFS, StorageNotWritable, "can only be read"),
        (errno.EIO, StorageNotWritable, "failed while it was read or written"),
    ],
)
@pytest.mark.parametrize("form", ["{words} (os error {number})", "[errno {number}] {words}", None])
def test_each_fault_has_a_sentence_in_every_form_that_it_comes_in(number, kind, words, form, places):
    text = os.strerror(number)
    error = RuntimeError(form.format(words=text, number=number)) if form else OSError(number, text)
    told = storage_fault(error, places)
    assert type(told) is kind
    assert words in str(told)


def test_a_read_only_database_is_understood(places, tmp_path):
    with closing(sqlite3.connect(tmp_path / "runs.db")) as con:
        con.execute("CREATE TABLE runs (id)")
    with (
        closing(sqlite3.connect(f"{(tmp_path / 'runs.db').as_uri()}?mode=ro", uri=True)) as con,
        pytest.raises(sqlite3.OperationalError) as caught,
    ):
        con.execute("INSERT INTO runs VALUES (1)")
    assert isinstance(storage_fault(caught.value, places), StorageNotWritable)


def test_a_fault_behind_another_error_is_found(places):
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise StaleArtifact("the catalog cannot be opened") from error
    except StaleArtifact as error:
        told = storage_fault(error, places)
    assert isinstance(told, StorageFull)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a sample says: 28 is a number"),
        InvalidPool("pool.jsonl: no reader knows the shape of its rows"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/nowhere"),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
)
def test_other_errors_are_left_as_they_are(error, places):
    assert storage_fault(error, places) is None


def test_a_folder_that_is_not_permitted_is_told_from_a_file_that_may_not_be_read(
    places, tmp_path, monkeypatch
):
    locked = tmp_path / "home"
    locked.mkdir()
    (locked / "pool.jsonl").write_text("")
    forbidden = {os.W_OK}
    # root may do everything, so the system's answer is replaced
    monkeypatch.setattr(os, "access", lambda _, mode: mode not in forbidden)
    error = PermissionError(errno.EACCES, "Permission denied", str(locked / "catalog.duckdb"))
    told = storage_fault(error, places)
    assert isinstance(told, StorageNotWritable)
    assert f"{locked} cannot be written by user {os.getuid()}" in str(told)
    forbidden.add(os.R_OK)
    unread = PermissionError(errno.EACCES, "Permission denied", str(locked / "pool.jsonl"))
    assert storage_fault(unread, places) is None


def test_what_was_told_where_the_folder_was_known_is_not_told_again(places, tmp_path):
    (tmp_path / "out").mkdir()
    full = f"^the disk of {tmp_path / 'out'} is full"
    with pytest.raises(StorageFull, match=full) as caught, writing_to(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert storage_fault(caught.value, places) is caught.value
    with pytest.raises(ValueError, match="a row"), writing_to(tmp_path):
        raise ValueError("a row")


def test_room_is_asked_for_before_it_is_needed(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "later", 1, what="rows", setting="execution.storage_root")
    with pytest.raises(StorageFull, match=r"^rows take .* has .* free; make room .*execution\.storage_root"):
        check_room(tmp_path / "later", 2 * free, what="rows", setting="execution.storage_root")


def test_a_folder_that_can_be_made_can_be_written(tmp_path):
    check_writable(tmp_path / "a" / "b", "CLUSTERUCB_HOME")
    assert list(tmp_path.iterdir()) == []
