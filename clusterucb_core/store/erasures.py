"""Erasing the text of samples from a catalog, and the record that it was done."""

from collections.abc import Callable, Sequence

import duckdb
import polars as pl

from clusterucb_core.frozen import Frozen
from clusterucb_core.store.statements import frame, frame_with, rows, run_on_frame, transaction

ERASED = "erased"


class ErasedRows(Frozen):
    """How many rows of a catalog lost their text."""

    samples: int = 0
    quarantine: int = 0
    exclusions: int = 0
    feature_rows: int = 0


def erase_rows(
    con: duckdb.DuckDBPyConnection, sample_ids: Sequence[str], shows_text: Callable[[str], bool]
) -> ErasedRows:
    """Take the text of samples out of every table, inside the transaction of the caller.

    Ids, places and numbers stay, so that old selections can still be told. A repeat finds nothing to do.

    Args:
        con: a catalog of any schema version, opened for writing.
        sample_ids: the samples.
        shows_text: whether a text holds some of theirs; asked about the quarantined rows.
    """
    incoming = pl.DataFrame({"sample_id": list(sample_ids)}, schema={"sample_id": pl.String})
    quarantined = _quarantined(con, shows_text)
    counts = ErasedRows(
        samples=_count(con, "samples JOIN incoming USING (sample_id) WHERE messages IS NOT NULL", incoming),
        quarantine=len(quarantined),
        exclusions=_count(
            con, f"exclusions JOIN incoming USING (sample_id) WHERE detail <> '{ERASED}'", incoming
        ),
        feature_rows=_count(con, "feature_rows JOIN incoming USING (sample_id)", incoming),
    )
    named = "sample_id IN (SELECT sample_id FROM incoming)"
    for statement in (
        f"UPDATE samples SET messages = NULL WHERE {named}",  # noqa: S608 - a fixed text
        f"UPDATE exclusions SET detail = '{ERASED}' WHERE {named}",  # noqa: S608
        f"DELETE FROM feature_rows WHERE {named}",  # noqa: S608
    ):
        run_on_frame(con, statement, incoming)
    run_on_frame(
        con,
        "UPDATE quarantine SET raw = NULL, detail = NULL WHERE rowid IN (SELECT place FROM incoming)",
        pl.DataFrame({"place": quarantined}, schema={"place": pl.Int64}),
    )
    return counts


def record_erasures(con: duckdb.DuckDBPyConnection, sample_ids: Sequence[str], *, reason: str) -> None:
    """Record that samples were erased, once everything else has been done; a repeat writes nothing."""
    with transaction(con):
        run_on_frame(
            con,
            "INSERT INTO erasures (sample_id, reason) SELECT sample_id, ? FROM incoming "
            "ON CONFLICT DO NOTHING",
            pl.DataFrame({"sample_id": list(sample_ids)}, schema={"sample_id": pl.String}),
            parameters=[reason],
        )


def erased_ids(con: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """Return the ids of all samples whose erasure was finished."""
    return frozenset(sample_id for (sample_id,) in rows(con, "SELECT sample_id FROM erasures"))


def _quarantined(con: duckdb.DuckDBPyConnection, shows_text: Callable[[str], bool]) -> list[int]:
    found = frame(
        con, "SELECT rowid AS place, concat_ws(' ', detail, raw) AS text FROM quarantine ORDER BY rowid"
    )
    return [place for place, text in found.iter_rows() if text and shows_text(text)]


def _count(con: duckdb.DuckDBPyConnection, source: str, incoming: pl.DataFrame) -> int:
    return frame_with(con, f"SELECT count(*) AS n FROM {source}", incoming).item(0, 0)  # noqa: S608
