"""What must hold of every file that the readers take, whatever its bytes: the oracle of both fuzzers.

A reader may refuse a file with a sentence; of every other file each row is a sample, several, or a quarantine
record with a reason, and the counts add up to the rows of the file.
"""

import faulthandler
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import polars as pl

from clusterucb_core.artifacts import read_manifest
from clusterucb_core.errors import InvalidConfig, InvalidPool, InvalidTarget
from clusterucb_core.pool.formats import FormatName, ReadRow, read_file
from clusterucb_core.pool.ingest import PoolSettings, ingest, ingest_counts, read_samples
from clusterucb_core.pool.quarantine import DETAIL_CHARS, RAW_BYTES, Reason
from clusterucb_core.records import Role
from clusterucb_core.targets.rows import read_rows as read_target_rows

HANG_SECONDS = 5
# The clock of the processor does not run while a process waits for one, so a busy machine is no hang.
_WALL_SECONDS = 300
_ADVICE = (";", " rows of ", "Rename")


class Violation(AssertionError):
    """A reader did what none may do."""


class Hang(Violation):
    """A reader took longer than any file of this size may."""


@dataclass
class Outcome:
    """What became of the rows of one file or of many."""

    rows: int = 0
    samples: int = 0
    rows_kept: int = 0
    refused: int = 0
    quarantined: Counter[str] = field(default_factory=Counter[str])

    def add(self, other: "Outcome") -> None:
        """Add the counts of another outcome."""
        self.rows += other.rows
        self.samples += other.samples
        self.rows_kept += other.rows_kept
        self.refused += other.refused
        self.quarantined.update(other.quarantined)


@contextmanager
def watchdog(seconds: float = HANG_SECONDS) -> Iterator[None]:
    """Raise `Hang` in the block after so many seconds of the processor; show where it is after minutes."""

    def bark(signum: int, frame: FrameType | None) -> None:
        raise Hang(f"still busy after {seconds:g} s of the processor")

    before = signal.signal(signal.SIGPROF, bark)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(_WALL_SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def check_pool_file(path: Path, *, written: int | None = None, format_name: FormatName = "auto") -> Outcome:
    """Read a pool file and return what became of its rows.

    Args:
        path: the file.
        written: the rows that are in it, where that is known.
        format_name: the shape to read it as.

    Raises:
        Violation: a row is unaccounted for, or a record or a sample is not what a table can hold.
    """
    found, last = Outcome(), 0
    broken = False
    try:
        for row in read_file(path, source="fuzz", format_name=format_name):
            broken = _check_row(row, last, found, after_the_end=broken)
            last = row.row_number
    except InvalidPool as error:
        _check_sentence(str(error), path)
        return Outcome(refused=1)
    if written is not None and not broken and found.rows != written:
        raise Violation(f"{found.rows} rows were read of {written} that were written")
    if written is not None and found.rows > written:
        raise Violation(f"{found.rows} rows were read before the damage, but only {written} were written")
    return found


def check_target_file(path: Path) -> Outcome:
    """Read a target file; it is refused with a sentence, or every row can be used."""
    try:
        rows = read_target_rows(path, "validation", subtask_key="subtask", default_subtask="all")
    except InvalidTarget as error:
        _check_sentence(str(error), path)
        return Outcome(refused=1)
    if len({row.row_id for row in rows}) != len(rows):
        raise Violation("two rows of a target have one id")
    for row in rows:
        _check_messages(row.messages)
    return Outcome(rows=len(rows), samples=len(rows), rows_kept=len(rows))


def check_config_file(path: Path) -> Outcome:
    """Load a configuration; it is refused with a sentence, or is one."""
    # imported here: it brings in what takes seconds, and the readers of rows need nothing of it
    from clusterucb_core.config import load_config

    try:
        load_config(path, variables={"HOME": "/nowhere"})
    except InvalidConfig as error:
        if len(str(error)) < 20 or len(str(error)) > 200_000:
            raise Violation(f"a message of {len(str(error))} characters") from error
        return Outcome(refused=1)
    return Outcome(rows=1, rows_kept=1)


def check_ingest(folder: Path, names: list[str], expected: Outcome, state: Path) -> dict[str, Any]:
    """Ingest files whose rows are known, and compare counts and tables.

    Raises:
        Violation: counts or tables differ from what reading each file gave.
    """
    settings = PoolSettings.model_validate({"sources": [{"path": name} for name in names]})
    try:
        ref = ingest(settings, base_folder=folder, artifact_root=state)
    except InvalidPool as error:
        if expected.samples:
            raise Violation(f"a pool of {expected.samples} samples was refused: {error}") from error
        return {}
    counts = ingest_counts(ref)
    read = (counts.rows_read, counts.samples_read, Counter(counts.quarantined))
    if read != (expected.rows, expected.samples, +expected.quarantined):
        raise Violation(f"ingest counted {read}, the files have {expected}")
    if counts.samples_read != counts.n_samples + counts.duplicates + counts.withdrawn:
        raise Violation(f"samples are unaccounted for: {counts}")
    quarantine = pl.read_parquet(Path(ref.path) / "quarantine.parquet")
    if Counter(quarantine["reason"].to_list()) != Counter(counts.quarantined):
        raise Violation("the quarantine table holds other rows than were counted")
    samples = list(read_samples(ref))
    if len({sample.sample_id for sample in samples}) != counts.n_samples or len(samples) != counts.n_samples:
        raise Violation("the table of samples holds other samples than were counted")
    for sample in samples:
        _check_messages(sample.messages)
    return read_manifest(ref)["counts"]


def _check_row(row: ReadRow, last: int, found: Outcome, *, after_the_end: bool) -> bool:
    """Check one row, count it, and return whether the container broke off with it."""
    is_end = any(bad.reason is Reason.BROKEN_CONTAINER for bad in row.bad)
    if after_the_end:
        raise Violation("a row came after the container had broken off")
    if not row.samples and not row.bad:
        raise Violation(f"row {row.row_number} gave neither a sample nor a record")
    if row.row_number <= last:
        raise Violation(f"row {row.row_number} came after row {last}")
    for bad in row.bad:
        if not bad.detail or len(bad.detail) > 8 * DETAIL_CHARS or len(bad.raw.encode()) > RAW_BYTES:
            raise Violation(f"a record of row {row.row_number} has {len(bad.detail)} characters of detail")
        if "\x00" in bad.detail + bad.raw or not bad.detail.encode():
            raise Violation(f"a record of row {row.row_number} holds a NUL")
    for sample in row.samples:
        if len(bytes.fromhex(sample.sample_id)) != 16:
            raise Violation(f"the id {sample.sample_id}")
        _check_messages(sample.messages)
    found.rows += not is_end
    found.samples += len(row.samples)
    found.rows_kept += bool(row.samples)
    found.quarantined.update(str(bad.reason) for bad in row.bad)
    return is_end


def _check_messages(messages: tuple[Any, ...]) -> None:
    roles = [message.role for message in messages]
    if not set(roles) <= set(get_args(Role)) or "user" not in roles or roles[-1] != "assistant":
        raise Violation(f"a sample with the roles {roles}")
    for message in messages:
        if not message.content.encode().strip():
            raise Violation(f"an empty turn of {message.role}")


def _check_sentence(text: str, path: Path) -> None:
    if str(path) not in text or not any(mark in text for mark in _ADVICE):
        raise Violation(f"a message without the file or without advice: {text[:500]}")
    if len(text) > 20_000:
        raise Violation(f"a message of {len(text)} characters")
