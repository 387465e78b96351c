"""Read the pool's sources once, drop repeats, and keep samples and quarantined rows as one artifact.

Reads the source files; writes `ingest/<fingerprint>/` below the artifact root.
"""

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clusterucb_core.artifacts import find_artifact, new_artifact, read_manifest
from clusterucb_core.errors import InvalidPool
from clusterucb_core.frozen import Frozen
from clusterucb_core.pacing import Pace, advance, finish
from clusterucb_core.pool.conversations import content_id, count_chars, messages_json
from clusterucb_core.pool.formats import ReadRow, read_file
from clusterucb_core.pool.quarantine import Reason
from clusterucb_core.pool.sources import (
    INGEST_VERSION,
    DedupeRule,
    PoolSettings,
    SourceFile,
    SourceSettings,
    ingest_fingerprint,
    source_files,
)
from clusterucb_core.pool.tables import (
    QUARANTINE_FILE,
    QUARANTINE_SCHEMA,
    SAMPLES_FILE,
    SAMPLES_SCHEMA,
    TableWriter,
    read_sample_ids,
    read_samples,
    table_writer,
)
from clusterucb_core.prompts import normalised_prompt
from clusterucb_core.records import ArtifactRef, Sample
from clusterucb_core.seeds import child_seed

__all__ = [
    "INGEST_VERSION",
    "IngestCounts",
    "PoolSettings",
    "SourceCounts",
    "SourceFile",
    "SourceSettings",
    "ingest",
    "ingest_counts",
    "ingest_fingerprint",
    "limit_samples",
    "read_sample_ids",
    "read_samples",
    "source_files",
]

STAGE = "ingest"
_DIGEST_BYTES = 16
_EVENTS = ("rows_read", "samples_read", "kept", "duplicates", "withdrawn")
_log = logging.getLogger(__name__)


class SourceCounts(Frozen):
    """What became of the rows of one source.

    `samples_read` = `kept` + `duplicates` + `withdrawn`. `rows_read` is a count of its own, since a tree or
    an `instances` row can give several samples and quarantine records. A container that breaks off adds one
    `broken_container` record and no row.
    """

    source: str
    rows_read: int
    samples_read: int
    kept: int
    duplicates: int
    withdrawn: int = 0
    quarantined: dict[str, int]


class IngestCounts(Frozen):
    """What became of all rows, by source in pool order and in total; `digest` names the set of sample ids."""

    sources: tuple[SourceCounts, ...]
    rows_read: int
    samples_read: int
    n_samples: int
    duplicates: int
    withdrawn: int = 0
    quarantined: dict[str, int]
    digest: str


def ingest(
    settings: PoolSettings,
    *,
    base_folder: Path,
    artifact_root: Path,
    withdrawn: Collection[str] = frozenset(),
) -> ArtifactRef:
    """Return the artifact that holds the pool, written now unless the same files were ingested before.

    Args:
        settings: what the pool is made of.
        base_folder: the folder that relative paths start from.
        artifact_root: the folder of all artifacts.
        withdrawn: ids of samples to leave out; a later row of the same prompt takes the place of one.

    Raises:
        InvalidPool: a source cannot be read, has no known shape, or no source gives a sample.
    """
    files = source_files(settings, base_folder)
    key = ingest_fingerprint(settings, files, withdrawn)
    if found := find_artifact(artifact_root, STAGE, key):
        _log.info("the pool %s has been ingested before", key)
        return found
    manifest: dict[str, Any] = {"ingest_version": INGEST_VERSION, "files": [file.path.name for file in files]}
    with new_artifact(artifact_root, STAGE, key, manifest) as folder:
        manifest["counts"] = _write_pool(settings, files, folder, withdrawn=withdrawn).model_dump(mode="json")
    return ArtifactRef(stage=STAGE, fingerprint=key, path=str(artifact_root / STAGE / key))


def ingest_counts(ref: ArtifactRef) -> IngestCounts:
    """Return what became of the rows of an ingested pool.

    Raises:
        MissingArtifact: the artifact is gone.
    """
    return IngestCounts.model_validate(read_manifest(ref)["counts"])


def limit_samples(sample_ids: Sequence[str], *, max_samples: int | None, seed: int) -> list[str]:
    """Return a random part of the pool that depends on the seed and the ids only, sorted.

    A sample that joins the pool changes at most one other sample's place in the part.

    Args:
        sample_ids: ids in any order; repeats count once.
        max_samples: the most ids to return; None: all.
        seed: the run's seed.
    """
    distinct = set(sample_ids)
    if max_samples is None or len(distinct) <= max_samples:
        return sorted(distinct)
    chosen = heapq.nsmallest(
        max_samples, distinct, key=lambda key: (child_seed(seed, "max_samples", key), key)
    )
    return sorted(chosen)


@dataclass(slots=True)
class _Tally:
    """What has been counted so far; it grows while the pool is read."""

    events: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    reasons: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    ids: bytearray = field(default_factory=bytearray)
    rows: int = 0
    first_bad: str = ""
    pace: Pace = field(default_factory=lambda: Pace(_log, "reading the pool", "rows", None))


@dataclass(frozen=True, slots=True)
class _Tables:
    samples: TableWriter
    quarantine: TableWriter


def _write_pool(
    settings: PoolSettings, files: Sequence[SourceFile], folder: Path, *, withdrawn: Collection[str]
) -> IngestCounts:
    tally, seen = _Tally(), dict[bytes, int]()
    with (
        table_writer(folder / SAMPLES_FILE, SAMPLES_SCHEMA) as samples,
        table_writer(folder / QUARANTINE_FILE, QUARANTINE_SCHEMA) as quarantine,
    ):
        tables = _Tables(samples, quarantine)
        for number, file in enumerate(files, start=1):
            tally.pace.what = f"reading the pool, file {number} of {len(files)}"
            tally.events.setdefault(file.name, Counter())
            tally.reasons.setdefault(file.name, Counter())
            for row in read_file(
                file.path, source=file.name, format_name=file.format, min_chars=settings.min_chars
            ):
                # before repeats are dropped: none may give way to a sample that is left out
                left = [sample for sample in row.samples if sample.sample_id not in withdrawn]
                kept = [copy for sample in left if (copy := _admitted(sample, seen, settings.dedupe))]
                _write_row(row, file, tables=tables, kept=kept)
                _count_row(row, file, tally=tally, kept=kept, repeats=len(left) - len(kept))
    finish(tally.pace)
    if not tally.ids:
        raise InvalidPool(_no_samples(tally))
    return _counts(tally)


def _admitted(sample: Sample, seen: dict[bytes, int], rule: DedupeRule) -> Sample | None:
    """Return the sample to keep, or None for a repeat; a repeat that the rule keeps gets an id of its own."""
    if rule == "prompt":
        prompt = normalised_prompt(sample.messages).encode()
        digest = hashlib.blake2b(prompt, digest_size=_DIGEST_BYTES).digest()
    else:
        digest = bytes.fromhex(sample.sample_id)
    copy = seen.get(digest, 0) + 1
    if copy > 1 and rule != "none":
        return None
    seen[digest] = copy
    return sample if copy == 1 else replace(sample, sample_id=content_id(sample.messages, copy))


def _write_row(row: ReadRow, file: SourceFile, *, tables: _Tables, kept: Sequence[Sample]) -> None:
    for sample in kept:
        text, chars = messages_json(sample.messages), count_chars(sample.messages)
        tables.samples.add(sample.sample_id, file.name, text, chars, file.path.name, row.row_number)
    for bad in row.bad:
        # The row number alone does not say which file of a source the row is in.
        detail = f"{file.path.name}: {bad.detail}"
        tables.quarantine.add(file.name, bad.row_number, str(bad.reason), detail, bad.raw)


def _count_row(
    row: ReadRow, file: SourceFile, *, tally: _Tally, kept: Sequence[Sample], repeats: int
) -> None:
    is_row = all(bad.reason is not Reason.BROKEN_CONTAINER for bad in row.bad)
    tally.rows += is_row
    # one by one: Counter.update takes as long as reading the row
    events = tally.events[file.name]
    events["rows_read"] += is_row
    events["samples_read"] += len(row.samples)
    events["kept"] += len(kept)
    events["duplicates"] += repeats
    events["withdrawn"] += len(row.samples) - len(kept) - repeats
    for bad in row.bad:
        tally.reasons[file.name][str(bad.reason)] += 1
    for sample in kept:
        tally.ids += bytes.fromhex(sample.sample_id)
    if row.bad and not tally.first_bad:
        tally.first_bad = f"{file.path.name}, row {row.row_number}: {row.bad[0].detail}"
    kept_so_far = len(tally.ids) // _DIGEST_BYTES
    advance(tally.pace, int(is_row), f"{kept_so_far:,} samples kept, in {file.name}")


def _counts(tally: _Tally) -> IngestCounts:
    sources = tuple(
        SourceCounts(
            source=name, quarantined=dict(tally.reasons[name]), **{key: events[key] for key in _EVENTS}
        )
        for name, events in tally.events.items()
    )
    reasons = sum(tally.reasons.values(), Counter[str]())
    total = sum(tally.events.values(), Counter[str]())
    return IngestCounts(
        sources=sources,
        rows_read=total["rows_read"],
        samples_read=total["samples_read"],
        n_samples=total["kept"],
        duplicates=total["duplicates"],
        withdrawn=total["withdrawn"],
        quarantined=dict(reasons),
        digest=_ids_digest(tally.ids),
    )


def _ids_digest(ids: bytearray) -> str:
    """Return the SHA-256 of the sorted ids as hex digits, one a line."""
    raw = bytes(ids)
    ordered = sorted(raw[at : at + _DIGEST_BYTES] for at in range(0, len(raw), _DIGEST_BYTES))
    return hashlib.sha256(b"".join(ordered).hex("\n", _DIGEST_BYTES).encode()).hexdigest()


def _no_samples(tally: _Tally) -> str:
    reasons = dict(sum(tally.reasons.values(), Counter[str]()))
    first = f", first {tally.first_bad}" if tally.first_bad else ""
    withdrawn = sum(events["withdrawn"] for events in tally.events.values())
    return (
        f"the pool has no sample: {tally.rows} rows read from {', '.join(tally.events)}; "
        f"quarantined {reasons}{first}; withdrawn {withdrawn}; correct the files or pool.sources"
    )
