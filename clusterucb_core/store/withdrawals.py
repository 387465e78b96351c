"""Samples that somebody asked to take out: recorded with every copy of their text, never taken back."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import polars as pl

from clusterucb_core.errors import MissingArtifact, UnknownSample
from clusterucb_core.store.connection import open_catalog
from clusterucb_core.store.statements import frame, frame_with, rows, run_on_frame, transaction

_NEAR_EDITS, _NEAR_SHOWN = 4, 3


def withdraw_samples(con: duckdb.DuckDBPyConnection, sample_ids: Sequence[str], *, reason: str) -> list[str]:
    """Record that samples were withdrawn; a repeat writes nothing.

    Args:
        con: a catalog opened for writing.
        sample_ids: the samples named in the request.
        reason: why, kept beside each.

    Returns:
        The ids withdrawn, sorted: those named, and those of other samples with the same messages, which a
        pool that keeps repeats has under ids of their own.

    Raises:
        UnknownSample: an id belongs to no sample; nothing was recorded.
    """
    with transaction(con):
        _check_known(con, sample_ids)
        every = _with_copies(con, sample_ids)
        run_on_frame(
            con,
            "INSERT INTO withdrawals (sample_id, reason) SELECT sample_id, ? FROM incoming "
            "ON CONFLICT DO NOTHING",
            _id_frame(every),
            parameters=[reason],
        )
    return every


def withdrawn_ids(catalog: Path) -> frozenset[str]:
    """Return the ids of all withdrawn samples; none where there is no catalog, or one without the table.

    Raises:
        CatalogBusy: another process kept the catalog.
    """
    try:
        with open_catalog(catalog, read_only=True, older=True) as con:
            if not rows(con, "SELECT 1 FROM duckdb_tables() WHERE table_name = 'withdrawals'"):
                return frozenset()
            return withdrawn_in(con)
    except MissingArtifact:
        return frozenset()


def withdrawn_in(con: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """Return the ids of all withdrawn samples of an open catalog."""
    return frozenset(sample_id for (sample_id,) in rows(con, "SELECT sample_id FROM withdrawals"))


def sample_origins(con: duckdb.DuckDBPyConnection, sample_ids: Sequence[str]) -> pl.DataFrame:
    """Return sample_id, source, path, row_number and messages (JSON text; null where erased), by id."""
    return frame_with(
        con,
        "SELECT sample_id, source, path, row_number, messages::VARCHAR AS messages "
        "FROM samples JOIN incoming USING (sample_id) ORDER BY sample_id",
        _id_frame(sample_ids),
    )


def _with_copies(con: duckdb.DuckDBPyConnection, sample_ids: Sequence[str]) -> list[str]:
    copies = frame_with(
        con,
        "SELECT DISTINCT copies.sample_id FROM samples AS copies JOIN ("
        "SELECT samples.messages FROM samples JOIN incoming USING (sample_id)"
        ") AS named ON copies.messages::VARCHAR = named.messages::VARCHAR",
        _id_frame(sample_ids),
    )
    return sorted({*sample_ids, *copies["sample_id"].to_list()})


def _check_known(con: duckdb.DuckDBPyConnection, sample_ids: Sequence[str]) -> None:
    unknown = frame_with(
        con, "SELECT sample_id FROM incoming ANTI JOIN samples USING (sample_id)", _id_frame(sample_ids)
    )["sample_id"].sort()
    if len(unknown) == 0:
        return
    near = frame(
        con,
        "SELECT sample_id FROM samples WHERE starts_with(sample_id, $id) "
        "OR levenshtein(sample_id, $id) <= $edits "
        "ORDER BY levenshtein(sample_id, $id), sample_id LIMIT $most",
        {"id": unknown[0], "edits": _NEAR_EDITS, "most": _NEAR_SHOWN},
    )["sample_id"].to_list()
    advice = f"near it: {', '.join(near)}" if near else "none is near it"
    raise UnknownSample(
        f"{len(unknown)} of {len(set(sample_ids))} sample ids belong to no sample, the first {unknown[0]!r} "
        f"({advice}); ids stand in the table samples of the catalog, and `clusterucb show` prints those of a "
        "selection; nothing was withdrawn"
    )


def _id_frame(sample_ids: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": sorted(set(sample_ids))}, schema={"sample_id": pl.String})
