"""Faults of a disk in one sentence: full, over a quota, read-only, not permitted, broken.

Libraries tell of them by an `OSError`, or in words of their own around those of the operating system. Reads
the state of file systems.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from clusterucb_core.errors import ClusterUcbError, StorageFull, StorageNotWritable, causes

# What to set so that files of a folder go elsewhere.
Places = Mapping[Path, str]
AGAIN = "give the same command again, which goes on from what was computed"
ELSEWHERE = "another path"
# SQLite calls a full disk an I/O error where it cannot grow its log.
NEARLY_NOTHING_BYTES = 64 * 2**10


class Fault(Enum):
    """What is wrong with a disk."""

    FULL = "full"
    QUOTA = "quota"
    TOO_LARGE = "too large"
    READ_ONLY = "read-only"
    NOT_PERMITTED = "not permitted"
    BROKEN = "broken"


_BY_NUMBER = {
    errno.ENOSPC: Fault.FULL,
    errno.EDQUOT: Fault.QUOTA,
    errno.EFBIG: Fault.TOO_LARGE,
    errno.EROFS: Fault.READ_ONLY,
    errno.EACCES: Fault.NOT_PERMITTED,
    errno.EPERM: Fault.NOT_PERMITTED,
    errno.EIO: Fault.BROKEN,
}
# SQLite's words, and those that no other trouble is told in.
_WORDS = {
    "database or disk is full": Fault.FULL,
    "attempt to write a readonly database": Fault.READ_ONLY,
    "disk i/o error": Fault.BROKEN,
    **{
        os.strerror(number).lower(): _BY_NUMBER[number]
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    },
}
# Rust (safetensors, polars) and Arrow give the number.
_NUMBER = re.compile(r"(?:os error|errno:?) (\d+)", re.IGNORECASE)
_PATH = re.compile(r"[\"'](/[^\"']+)[\"']")


def storage_fault(error: BaseException, places: Places) -> ClusterUcbError | None:
    """Return a fault of the disk as one sentence, or None where the error tells of something else.

    Args:
        error: what was raised; its causes are looked at too.
        places: the folders that are written to, and what sets each: the first is named where nothing tells
            which of them it was.
    """
    for part in causes(error):
        if isinstance(part, StorageFull | StorageNotWritable):
            return part  # told already, by who knew the folder
        if isinstance(part, ClusterUcbError):
            continue
        fault, path = _fault_of(part), _path_of(part)
        if fault is None:
            continue
        if fault is Fault.NOT_PERMITTED and (part is not error or not _cannot_be_written(path)):
            continue  # something else was not permitted
        folder = existing(path) if path else _likely(fault, places)
        if fault is Fault.BROKEN and shutil.disk_usage(folder).free < NEARLY_NOTHING_BYTES:
            fault = Fault.FULL
        return _told(fault, _place(folder, places), _setting(folder, places))
    return None


@contextmanager
def writing_to(folder: Path) -> Generator[None]:
    """Name a folder in what a block meets of its disk: an error of writing does not say where.

    Raises:
        StorageFull: its disk has no room.
        StorageNotWritable: it cannot be written, or its disk failed.
    """
    try:
        yield
    except Exception as error:
        if (told := storage_fault(error, {folder.absolute(): ELSEWHERE})) is not None:
            raise told from error
        raise


def full_disk(folder: Path, places: Places) -> StorageFull:
    """Return the sentence about a folder whose disk is full."""
    told = _told(Fault.FULL, existing(folder), _setting(existing(folder), places))
    assert isinstance(told, StorageFull), "a full disk"
    return told


def check_writable(folder: Path, setting: str) -> None:
    """Check that a folder can be written, or can be made; nothing is written.

    Args:
        folder: it need not exist.
        setting: what names another one.

    Raises:
        StorageNotWritable: it cannot.
    """
    place = existing(folder)
    if not os.access(place, os.W_OK | os.X_OK):
        raise _told(Fault.READ_ONLY if _is_read_only(place) else Fault.NOT_PERMITTED, place, setting)


def check_room(folder: Path, needed_bytes: int, *, what: str, setting: str) -> None:
    """Check that what is about to be written fits a disk.

    Args:
        folder: where it will lie; it need not exist.
        needed_bytes: its size, at least.
        what: what it is, in the plural.
        setting: what names another folder.

    Raises:
        StorageFull: it does not fit.
    """
    free = shutil.disk_usage(existing(folder)).free
    if needed_bytes > free:
        raise StorageFull(
            f"{what} take {_size(needed_bytes)}, and the disk of {folder} has {_size(free)} free; make room "
            f"and {AGAIN}, or set {setting} to a folder on another disk"
        )


def existing(path: Path) -> Path:
    """Return the folder of a path, or the nearest one above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())


def _fault_of(error: BaseException) -> Fault | None:
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_NUMBER.get(error.errno)
    text = str(error).lower()
    for words, fault in _WORDS.items():
        if words in text:
            return fault
    number = _NUMBER.search(text)
    return _BY_NUMBER.get(int(number[1])) if number else None


def _path_of(error: BaseException) -> Path | None:
    name = getattr(error, "filename", None)
    if isinstance(name, str | os.PathLike) and str(name):
        return Path(str(name)).absolute()
    found = _PATH.search(str(error))
    return Path(found[1]) if found else None


def _cannot_be_written(path: Path | None) -> bool:
    """Tell whether a path is one that may be read, or is not there yet, and cannot be written."""
    if path is None or (path.is_file() and not os.access(path, os.R_OK)):
        return False
    return not os.access(path if path.exists() else existing(path), os.W_OK)


def _likely(fault: Fault, places: Places) -> Path:
    """Return the folder that a fault without a path is about."""
    folders = [existing(place) for place in (*places, Path(tempfile.gettempdir()))]
    if fault is Fault.READ_ONLY:
        return next((folder for folder in folders if _is_read_only(folder)), folders[0])
    if fault is Fault.FULL:
        return min(folders, key=lambda folder: shutil.disk_usage(folder).free)
    return folders[0]


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _place(folder: Path, places: Places) -> Path:
    """Return the innermost of the places that a folder lies in, else the folder."""
    inside = [place for place in places if folder.is_relative_to(place) and place.is_dir()]
    return max(inside, key=lambda place: len(place.parts), default=folder)


def _setting(folder: Path, places: Places) -> str:
    """Return what sets the innermost of the places that a folder lies in."""
    if (place := _place(folder, places)) in places:
        return places[place]
    if above := [place for place in places if place.is_relative_to(folder)]:
        return places[above[0]]
    return "TMPDIR" if folder.is_relative_to(tempfile.gettempdir()) else ELSEWHERE


def _told(fault: Fault, folder: Path, setting: str) -> ClusterUcbError:
    usage = shutil.disk_usage(folder)
    free = f"{_size(usage.free)} of {_size(usage.total)} are free now"
    elsewhere = f"{AGAIN}, or set {setting} to a folder"
    match fault:
        case Fault.FULL if usage.free and not os.statvfs(folder).f_favail:
            return StorageFull(
                f"the disk of {folder} has no entry left for another file; remove files and {elsewhere} on "
                "another disk"
            )
        case Fault.FULL:
            return StorageFull(
                f"the disk of {folder} is full: what was to be written did not fit, {free}; make room and "
                f"{elsewhere} on another disk"
            )
        case Fault.QUOTA:
            return StorageFull(
                f"the quota of this user on the disk of {folder} is used up ({free} on the disk itself); "
                f"make room and {elsewhere} on another disk"
            )
        case Fault.TOO_LARGE:
            return StorageFull(
                f"a file in {folder} would be larger than its file system or `ulimit -f` allows; raise the "
                f"limit and {elsewhere} on another disk"
            )
        case Fault.READ_ONLY:
            return StorageNotWritable(
                f"{folder} is on a disk that can only be read; mount it for writing and {elsewhere} that can "
                "be written"
            )
        case Fault.NOT_PERMITTED:
            return StorageNotWritable(
                f"{folder} cannot be written by user {os.getuid()}; correct its permissions and {elsewhere} "
                "that can be written"
            )
        case Fault.BROKEN:
            return StorageNotWritable(
                f"the disk of {folder} failed while it was read or written; see the log of the system, mend "
                f"the disk and {elsewhere} on another disk"
            )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"
