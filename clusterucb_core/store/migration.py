"""Making the tables of a catalog, and bringing one of an earlier schema to the present one.

Writes a backup beside the catalog before it is migrated.
"""

import logging
import threading
from pathlib import Path

import duckdb

from clusterucb_core.errors import StaleArtifact
from clusterucb_core.store.backup_files import new_backup_path, older_of_schema
from clusterucb_core.store.copying import discard, save_copy
from clusterucb_core.store.damage import damage_in
from clusterucb_core.store.schema import (
    LATEST_SELECTION,
    MIGRATIONS,
    SCHEMA_VERSION,
    STATEMENTS,
    check_schema,
    has_schema,
    schema_version,
)
from clusterucb_core.store.statements import run, transaction

logger = logging.getLogger(__name__)

# DuckDB's lock keeps other processes out, but not the threads of this one.
_ONE_THREAD = threading.Lock()


def ensure_schema(con: duckdb.DuckDBPyConnection, backups: Path | None) -> None:
    """Create what the catalog lacks, or bring a catalog of an earlier version to the present one.

    Args:
        con: the file, opened for writing.
        backups: the folder for a copy of the catalog before it is migrated; None makes no copy.

    Raises:
        StaleArtifact: the file was written by a newer version, holds other tables of the same names, or could
            not be backed up or migrated; nothing of a migration that failed is kept.
    """
    if has_schema(con):
        if schema_version(con) in MIGRATIONS:
            with _ONE_THREAD:
                _bring_forward(con, backups)
        check_schema(con)
        return
    try:
        with transaction(con):
            for text in STATEMENTS:
                if text.strip():
                    run(con, text)
            run(con, "INSERT INTO catalog_schema (schema_version) VALUES (?)", [SCHEMA_VERSION])
    except duckdb.CatalogException as error:
        if has_schema(con):  # another thread made the tables since the first look
            check_schema(con)
            return
        raise StaleArtifact(
            f"the database holds tables that ClusterUCB did not make ({error}); give it a file of its own"
        ) from error


def _bring_forward(con: duckdb.DuckDBPyConnection, backups: Path | None) -> None:
    found = schema_version(con)
    if found not in MIGRATIONS:  # another thread has done it
        return
    kept = "no backup was asked for"
    if backups is not None:
        kept = f"a backup lies at {_back_up(con, backups, found)}"
    try:
        with transaction(con):
            _migrate(con, found)
    except duckdb.Error as error:
        if damage_in(error) is not None:
            raise
        raise StaleArtifact(
            f"the catalog could not be brought from schema version {found} to {SCHEMA_VERSION} ({error}); it "
            f"is as it was, and {kept}; use the version of ClusterUCB that wrote it, and report this"
        ) from error
    logger.info("the catalog was brought from schema version %d to %d; %s", found, SCHEMA_VERSION, kept)


def _back_up(con: duckdb.DuckDBPyConnection, folder: Path, schema: int) -> Path:
    final = new_backup_path(folder, ending=f"-schema-{schema}")
    try:
        save_copy(con, final)
    except (duckdb.Error, OSError) as error:
        if damage_in(error) is not None:
            raise
        raise StaleArtifact(
            f"the catalog has schema version {schema} and could not be backed up before it is brought to "
            f"{SCHEMA_VERSION} ({error}); nothing was changed: make room in {folder}, or make it writable, "
            "and try again"
        ) from error
    for old in older_of_schema(folder, schema):
        discard(old)
    return final


def _migrate(con: duckdb.DuckDBPyConnection, found: int) -> None:
    while found in MIGRATIONS:
        for text in MIGRATIONS[found].split(";\n"):
            if text.strip():
                run(con, text)
        found += 1
        run(con, "INSERT INTO catalog_schema (schema_version) VALUES (?)", [found])
    run(con, "DROP VIEW latest_selection")
    run(con, LATEST_SELECTION)
