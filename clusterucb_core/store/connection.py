"""Opening the catalog file: one process at a time while it is written, many while it is only read."""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import duckdb

from clusterucb_core.errors import CatalogBusy, MissingArtifact, StaleArtifact
from clusterucb_core.store.backup_files import folder_beside, newest_backup
from clusterucb_core.store.damage import damage_in, damage_told
from clusterucb_core.store.gate import gate
from clusterucb_core.store.migration import ensure_schema
from clusterucb_core.store.schema import check_schema, has_tables
from clusterucb_core.store.statements import run

logger = logging.getLogger(__name__)

FIRST_WAIT_S = 0.02
LONGEST_WAIT_S = 1.0


@contextmanager
def open_catalog(
    path: Path, *, read_only: bool = False, older: bool = False, timeout_s: float = 60.0
) -> Generator[duckdb.DuckDBPyConnection, None, None]:
    """Open the catalog for the block; writing, the folder and the tables are made where absent.

    Hold it briefly: while one process writes, no other can open the file, readers included. The functions of
    this package that write expect one writer at a time in a process as well.

    Args:
        path: the DuckDB file.
        read_only: open an existing catalog without the right to change it.
        older: with `read_only`, take a catalog of an earlier version too.
        timeout_s: how long to wait while another process, or another thread in the other mode, holds it.

    Yields:
        A connection in UTC. Leaving without an error moves the write-ahead log into the file.

    Raises:
        MissingArtifact: `read_only`, and there is no such file, or no table in it yet.
        StaleArtifact: the file is no catalog, one of a newer version, or an older one that could not be
            backed up or migrated.
        DamagedCatalog: the file is damaged; it may come in the middle of the block, where DuckDB finds it.
        CatalogBusy: the file was still locked after `timeout_s` seconds.
    """
    if not path.is_file() or _is_unborn(path):
        _tell_absence(path, read_only=read_only)
    if not read_only:
        path.parent.mkdir(parents=True, exist_ok=True)
    connect = partial(_connect, path, read_only=read_only, older=older)
    with damage_told(path):
        with gate(path):
            con = wait_for_catalog(path, connect, timeout_s=timeout_s)
        try:
            yield con
            if not read_only:
                _checkpoint(con)
        finally:
            con.close()


def wait_for_catalog(
    path: Path, connect: Callable[[], duckdb.DuckDBPyConnection], *, timeout_s: float
) -> duckdb.DuckDBPyConnection:
    """Return what `connect` returns, called again while another process or thread holds the file.

    A process that waits may open the file in the moment before a rewritten one takes its name, and would then
    get the lock of a file that has no name any more: whoever opened another file than the one that bears the
    name afterwards opens it again.

    Raises:
        CatalogBusy: the file was still held after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    wait_s = FIRST_WAIT_S
    while True:
        before = _inode(path)
        try:
            con = connect()
        except (duckdb.Error, CatalogBusy, StaleArtifact) as caught:
            error: Exception = caught
            if not _is_held(error) and not _was_replaced(path, before):
                raise
        else:
            if not _was_replaced(path, before):
                return con
            con.close()
            error = CatalogBusy(f"{path} was replaced while it was being opened")
        if time.monotonic() + wait_s > deadline:
            raise CatalogBusy(_busy_message(path, error, timeout_s=timeout_s)) from error
        logger.debug("catalog %s is held: %s", path, error)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _tell_absence(path: Path, *, read_only: bool) -> None:
    newest = newest_backup(path)
    if not read_only:
        if newest is not None:
            logger.warning(
                "there is no catalog at %s, so a new one is made, which knows no earlier selection and no "
                "withdrawal; `clusterucb restore` brings back the backup of %s",
                path,
                newest.told_time,
            )
        return
    if newest is None:
        raise MissingArtifact(f"there is no catalog at {path}; run `clusterucb run` first")
    raise MissingArtifact(
        f"there is no catalog at {path}; `clusterucb restore` brings back the backup of {newest.told_time}, "
        "`clusterucb run` makes a new one"
    )


def _is_unborn(path: Path) -> bool:
    """Return whether a file is what a process left that was killed in the moment of making the first catalog.

    Where there is a backup there was a catalog, and an empty file is a damaged one.
    """
    return path.stat().st_size == 0 and newest_backup(path) is None


def _remove_unborn(path: Path) -> bool:
    """Remove an empty file that no process is about to fill; return whether it was."""
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as DuckDB locks it
        except OSError:
            return False
        found = os.fstat(file.fileno())
        if found.st_size or found.st_ino != _inode(path):
            return False
        path.unlink()
    return True


def _inode(path: Path) -> int | None:
    # a look at the name only: to open and close the file would let go of this process's lock on it
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _was_replaced(path: Path, before: int | None) -> bool:
    return before is not None and _inode(path) != before


def _connect(path: Path, *, read_only: bool, older: bool) -> duckdb.DuckDBPyConnection:
    absent = not path.exists()
    try:
        con = duckdb.connect(path, read_only=read_only)
    except duckdb.Error as error:
        if absent and any(fault in str(error) for fault in ("No space left", "Could not write")):
            path.unlink(missing_ok=True)  # half of a new file, which nobody could ever open
        if _is_held(error):
            raise
        if not read_only and path.is_file() and _is_unborn(path) and _remove_unborn(path):
            raise CatalogBusy(f"{path} was left empty by a process that was killed") from error
        if damage_in(error) is not None:
            raise
        raise StaleArtifact(f"{path} cannot be opened as a catalog: {error}") from error
    try:
        run(con, "SET TimeZone = 'UTC'")
        if read_only:
            if not has_tables(con):  # as a process left it that was killed before it had made them
                _tell_absence(path, read_only=True)
            check_schema(con, older=older)
        else:
            ensure_schema(con, folder_beside(path))
    except BaseException as error:
        con.close()
        if isinstance(error, StaleArtifact):
            raise StaleArtifact(f"{path}: {error}") from error
        raise
    return con


def _is_held(error: Exception) -> bool:
    text = str(error)
    other_process = "Could not set lock" in text
    other_mode = isinstance(error, duckdb.ConnectionException) and "different configuration" in text
    # a thread of this process opens or closes the file right now
    in_between = isinstance(error, duckdb.ResourceInUseException) and "already attached" in text
    schema_race = isinstance(error, CatalogBusy)  # two threads made the tables at once
    return other_process or other_mode or in_between or schema_race


def _busy_message(path: Path, error: Exception, *, timeout_s: float) -> str:
    text = str(error)
    # DuckDB names the holder as `(PID n)`; where it does not, the holder is a thread of this process.
    holder = text if "(PID" in text else f"held by this process (PID {os.getpid()}): {text}"
    return (
        f"the catalog {path} stayed locked for {timeout_s:g} s; end the run or the DuckDB client that "
        f"holds it, or wait for it, and try again. {holder}"
    )


def _checkpoint(con: duckdb.DuckDBPyConnection) -> None:
    try:
        run(con, "CHECKPOINT")
    except duckdb.TransactionException as error:
        # Another thread of this process is writing: its own leaving will move the log.
        logger.debug("checkpoint left to a later writer: %s", error)
