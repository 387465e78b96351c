"""A damaged catalog: how DuckDB tells of one, and what its user is told.

DuckDB keeps a checksum with the headers, with each block and with each entry of the write-ahead log, and
compares it as it reads them: an error may come as the file is opened, or in the middle of any later query.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from clusterucb_core.errors import DamagedCatalog
from clusterucb_core.store.backup_files import is_backup, newest_backup

# What DuckDB says: it has no class of its own for these, and its commits and checkpoints quote them.
_SIGNS = (
    "Corrupt database file",
    "Corrupt WAL file",
    "Failure while replaying WAL file",
    "is not a valid DuckDB database file",
    "Could not read enough bytes",
    "Failed to load metadata pointer",
    "Failed to deserialize",
)
# A log that cannot be replayed for want of room is whole.
_OTHER_CAUSES = ("No space left on device", "Out of Memory")


@contextmanager
def damage_told(path: Path) -> Generator[None, None, None]:
    """Turn what DuckDB says of a damaged file, anywhere in the block, into an error that says what to do.

    Raises:
        DamagedCatalog: the file, or its write-ahead log, is damaged.
    """
    try:
        yield
    except duckdb.Error as error:
        found = damage_in(error)
        if found is None:
            raise
        raise DamagedCatalog(f"the catalog {path} is damaged ({found}); {_advice(path)}") from error


def damage_in(error: Exception) -> str | None:
    """Return the line in which an error tells of a damaged file; None where it tells of something else."""
    text = str(error)
    if any(cause in text for cause in _OTHER_CAUSES):
        return None
    told = [line.strip() for line in text.splitlines() if any(sign in line for sign in _SIGNS)]
    return told[0] if told else None


def _advice(path: Path) -> str:
    if is_backup(path):
        return (
            "`clusterucb restore --list` shows the others; nothing can be erased from this one, so delete it"
        )
    newest = newest_backup(path)
    if newest is not None:
        return f"`clusterucb restore` brings back the backup of {newest.told_time}"
    return (
        "there is no backup of it; move it and the .wal file beside it away, and `clusterucb run` makes a "
        "new one and publishes again from the artifacts that are kept"
    )
