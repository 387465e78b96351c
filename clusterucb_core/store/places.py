"""Where text was written outside of the catalog: exports, and the folders that artifacts lie in."""

from collections.abc import Sequence

import duckdb
import polars as pl

from clusterucb_core.frozen import Frozen
from clusterucb_core.store.statements import frame, frame_with, rows, run, transaction


class ExportRecord(Frozen):
    """One export: an absolute path, what was written there, and the SHA-256 of the file."""

    path: str
    selection_version: int
    format: str
    digest: str


def record_export(con: duckdb.DuckDBPyConnection, record: ExportRecord) -> None:
    """Record an export; a later one to the same path takes the place of an earlier one."""
    with transaction(con):
        run(
            con,
            "INSERT INTO exports (path, selection_version, format, digest) VALUES (?, ?, ?, ?) "
            'ON CONFLICT DO UPDATE SET selection_version = excluded.selection_version, "at" = now(), '
            "format = excluded.format, digest = excluded.digest",
            [record.path, record.selection_version, record.format, record.digest],
        )


def exports_holding(con: duckdb.DuckDBPyConnection, sample_ids: Sequence[str]) -> list[ExportRecord]:
    """Return the exports of selections that chose one of the samples, and reports on those that drew one."""
    found = frame_with(
        con,
        """
        SELECT DISTINCT path, selection_version, format, digest FROM exports
        JOIN (
            SELECT selection_version, sample_id, NULL AS only_format FROM selection_samples
            UNION ALL SELECT selection_version, sample_id, 'report' FROM pulls
        ) AS shown USING (selection_version)
        JOIN incoming USING (sample_id)
        WHERE only_format IS NULL OR format = only_format
        ORDER BY path
        """,
        pl.DataFrame({"sample_id": list(sample_ids)}, schema={"sample_id": pl.String}),
    )
    return [ExportRecord(**row) for row in found.iter_rows(named=True)]


def record_artifact_root(con: duckdb.DuckDBPyConnection, path: str) -> None:
    """Record a folder that artifacts are written to; a repeat writes nothing."""
    if not rows(con, "SELECT 1 FROM artifact_roots WHERE path = ?", [path]):
        with transaction(con):
            run(con, "INSERT INTO artifact_roots VALUES (?)", [path])


def artifact_roots(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the folders that artifacts were written to, sorted."""
    return frame(con, "SELECT path FROM artifact_roots ORDER BY path")["path"].to_list()
