"""Pool versions: which samples the pool held after each ingest, and what was no sample."""

import re
from collections.abc import Sequence
from pathlib import Path

import duckdb
import polars as pl

from clusterucb_core.errors import MissingArtifact, StaleArtifact, UnknownVersion
from clusterucb_core.frozen import Frozen
from clusterucb_core.store.statements import frame, frame_with, rows, run, transaction


class PoolVersion(Frozen):
    """One version of the pool; added and removed are counted against the parent.

    `created` tells whether the call that returned it wrote it.
    """

    pool_version: int
    parent_version: int | None
    n_samples: int
    n_added: int
    n_removed: int
    n_quarantined: int
    digest: str
    created: bool


def record_pool(
    con: duckdb.DuckDBPyConnection, *, samples_parquet: Path, quarantine_parquet: Path, digest: str
) -> PoolVersion:
    """Record the pool as a new version, unless its content is that of the newest one.

    Args:
        con: a catalog opened for writing.
        samples_parquet: sample_id, source, messages (JSON text), n_chars, path, row_number; ids are unique.
        quarantine_parquet: source, row_number, reason, detail, raw.
        digest: names the content of the pool.

    Returns:
        The version written, or the newest one with `created=False`. A sample that an earlier version held
        keeps the source, path and row number of its first time.

    Raises:
        MissingArtifact: one of the files is absent.
        StaleArtifact: a sample id occurs twice.
    """
    for path in (samples_parquet, quarantine_parquet):
        if not path.is_file():
            raise MissingArtifact(f"{path} is missing; run the ingest stage again")
    with transaction(con):
        newest = rows(con, "SELECT pool_version, digest FROM pools ORDER BY pool_version DESC LIMIT 1")
        parent, parent_digest = newest[0] if newest else (None, None)
        if digest == parent_digest:
            return pool_version(con, parent)
        # a number that a restoration lost is not given again
        (lost,) = rows(con, "SELECT coalesce(max(highest_pool), 0) FROM restorations")[0]
        version = max(parent or 0, lost) + 1
        _check_unique(con, samples_parquet)
        _insert_samples(con, samples_parquet, version=version)
        _insert_quarantine(con, quarantine_parquet, version=version)
        _insert_pool(con, version, parent=parent, digest=digest)
    return pool_version(con, version).model_copy(update={"created": True})


def pool_version(con: duckdb.DuckDBPyConnection, version: int | None = None) -> PoolVersion:
    """Return a pool version, the newest where none is named.

    Raises:
        UnknownVersion: the catalog holds no such pool version.
    """
    found = frame(
        con,
        "SELECT pool_version, parent_version, n_samples, n_added, n_removed, n_quarantined, digest "
        "FROM pools WHERE ? IS NULL OR pool_version = ? ORDER BY pool_version DESC LIMIT 1",
        [version, version],
    )
    if found.is_empty():
        known = [number for (number,) in rows(con, "SELECT pool_version FROM pools ORDER BY pool_version")]
        wanted = "any pool version" if version is None else f"pool version {version}"
        raise UnknownVersion(
            f"the catalog does not hold {wanted}; known: {known or 'none'}; ingest the pool first"
        )
    return PoolVersion(created=False, **found.row(0, named=True))


def pool_sample_ids(con: duckdb.DuckDBPyConnection, pool_version: int) -> list[str]:
    """Return the sample ids of a pool version, sorted; none for a version that does not exist."""
    query = "SELECT sample_id FROM pool_samples WHERE pool_version = ? ORDER BY sample_id"
    return frame(con, query, [pool_version])["sample_id"].to_list()


def pool_messages(con: duckdb.DuckDBPyConnection, sample_ids: Sequence[str]) -> pl.DataFrame:
    """Return sample_id, source, messages (JSON text; null where erased) and n_chars, in the order given.

    Raises:
        ValueError: an id belongs to no sample.
    """
    wanted = pl.DataFrame({"sample_id": list(sample_ids)}, schema={"sample_id": pl.String})
    found = frame_with(
        con,
        "SELECT incoming.sample_id, samples.source, samples.messages, samples.n_chars, "
        "samples.sample_id IS NULL AS is_unknown "
        "FROM incoming LEFT JOIN samples USING (sample_id) ORDER BY place",
        wanted.with_row_index("place"),
    )
    unknown = found.filter("is_unknown")["sample_id"].to_list()
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(wanted)} sample ids are in no pool version, the first {unknown[0]!r}; "
            "ingest the pool they come from first"
        )
    return found.drop("is_unknown")


def _check_unique(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    query = "SELECT sample_id FROM read_parquet(?) GROUP BY sample_id HAVING count(*) > 1 LIMIT 1"
    twice = rows(con, query, [_literal(path)])
    if twice:
        raise StaleArtifact(f"{path} holds sample id {twice[0][0]!r} twice; delete its folder and run again")


def _insert_samples(con: duckdb.DuckDBPyConnection, path: Path, *, version: int) -> None:
    run(
        con,
        "INSERT INTO samples (sample_id, source, messages, n_chars, first_pool_version, path, row_number) "
        "SELECT sample_id, source, messages, n_chars, ?, path, row_number "
        "FROM read_parquet(?) AS fresh ANTI JOIN samples USING (sample_id)",
        [version, _literal(path)],
    )
    # in order: the index of a million random ids takes twice the time and, from the second version, the space
    run(
        con,
        "INSERT INTO pool_samples SELECT ?, sample_id FROM read_parquet(?) ORDER BY sample_id",
        [version, _literal(path)],
    )


def _insert_quarantine(con: duckdb.DuckDBPyConnection, path: Path, *, version: int) -> None:
    run(
        con,
        "INSERT INTO quarantine (pool_version, source, row_number, reason, detail, raw) "
        "SELECT ?, source, row_number, reason, detail, raw FROM read_parquet(?)",
        [version, _literal(path)],
    )


def _insert_pool(con: duckdb.DuckDBPyConnection, version: int, *, parent: int | None, digest: str) -> None:
    run(
        con,
        "WITH fresh AS (SELECT sample_id FROM pool_samples WHERE pool_version = $version), "
        "old AS (SELECT sample_id FROM pool_samples WHERE pool_version = $parent) "
        "INSERT INTO pools "
        "(pool_version, parent_version, n_samples, n_added, n_removed, n_quarantined, digest) "
        "SELECT $version, $parent, (SELECT count(*) FROM fresh), "
        "(SELECT count(*) FROM fresh ANTI JOIN old USING (sample_id)), "
        "(SELECT count(*) FROM old ANTI JOIN fresh USING (sample_id)), "
        "(SELECT count(*) FROM quarantine WHERE pool_version = $version), $digest",
        {"version": version, "parent": parent, "digest": digest},
    )


def _literal(path: Path) -> str:
    # read_parquet takes patterns: `[`, `*` and `?` in the name of a folder would match its neighbours.
    return re.sub(r"([\[*?])", r"[\1]", str(path))
