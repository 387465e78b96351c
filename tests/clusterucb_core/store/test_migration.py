"""Catalogs of every earlier schema, made by SQL that was frozen with it, are brought to the present one."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

from clusterucb_core.errors import DamagedCatalog, StaleArtifact
from clusterucb_core.store import (
    exports_holding,
    latest_selection,
    list_selections,
    open_catalog,
    publish_selections,
    selection_evaluations,
    withdrawn_ids,
)
from clusterucb_core.store.backup_files import backup_files, folder_beside
from clusterucb_core.store.schema import MIGRATIONS, SCHEMA_VERSION
from clusterucb_core.store.statements import rows

SCHEMAS = Path(__file__).parent / "schemas"
EARLIER = sorted(int(path.stem.removeprefix("schema_")) for path in SCHEMAS.glob("schema_*.sql"))
OPEN_AND_DIE = """
import os, signal, sys
from pathlib import Path
from clusterucb_core.store import migration, open_catalog
statements = 0
run = migration.run
def run_until(con, *arguments):
    global statements
    statements += 1
    if statements > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    run(con, *arguments)
migration.run = run_until
with open_catalog(Path(sys.argv[1])):
    print(statements)
"""


def make(path: Path, schema: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(path) as con:
        con.execute((SCHEMAS / f"schema_{schema}.sql").read_text("utf-8"))
    return path


@dataclass(frozen=True)
class Brought:
    """A catalog of an earlier version of ClusterUCB, with rows in every table, before and after."""

    schema: int
    path: Path
    shape: list[Any]
    content: dict[str, list[dict[str, object]]]


@pytest.fixture(scope="module", params=EARLIER)
def brought(request, tmp_path_factory):
    """An earlier catalog that was opened for writing once."""
    path = make(tmp_path_factory.mktemp("earlier") / "catalog.duckdb", request.param)
    before = Brought(request.param, path, shape(path), content(path))
    with open_catalog(path):
        pass
    return before


@pytest.fixture
def first(catalog_path):
    """A catalog as the first version of ClusterUCB made it."""
    return make(catalog_path, 1)


def shape(path: Path):
    """Return what a program that uses a catalog relies on; the order of columns is no part of it."""
    with duckdb.connect(path, read_only=True) as con:
        return [
            con.execute(query).fetchall()
            for query in (
                "SELECT table_name, column_name, data_type, is_nullable, column_default "
                "FROM duckdb_columns() WHERE NOT internal ORDER BY ALL",
                "SELECT table_name, constraint_type, constraint_text FROM duckdb_constraints() ORDER BY ALL",
                "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal",
                "SELECT function_name, macro_definition FROM duckdb_functions() WHERE NOT internal",
            )
        ]


def content(path: Path) -> dict[str, list[dict[str, object]]]:
    """Return the rows of every table, with the columns in the order of their names."""
    with duckdb.connect(path, read_only=True) as con:
        con.execute("SET TimeZone = 'UTC'")
        columns = con.execute(
            "SELECT table_name, list(column_name ORDER BY column_name) FROM duckdb_columns() "
            "WHERE table_name IN (SELECT table_name FROM duckdb_tables()) GROUP BY ALL"
        ).fetchall()
        found: dict[str, list[dict[str, object]]] = {}
        for table, names in columns:
            listed = ", ".join(f'"{name}"' for name in names)
            every = con.execute(f"SELECT {listed} FROM {table} ORDER BY ALL").fetchall()
            found[table] = [dict(zip(names, row, strict=True)) for row in every]
    del found["catalog_schema"]
    return found


def backed_up(path: Path) -> list[int]:
    """Return the schemas that copies of a catalog were made of."""
    return [file.schema for file in backup_files(folder_beside(path)) if file.schema is not None]


def test_every_schema_before_the_present_one_is_frozen():
    assert EARLIER == list(range(1, SCHEMA_VERSION)) == sorted(MIGRATIONS)


def test_an_earlier_catalog_becomes_what_a_new_one_is(brought, empty_catalog):
    assert shape(brought.path) == shape(empty_catalog)


def test_every_row_survives(brought):
    assert all(brought.content.values())
    after = content(brought.path)
    for table, kept in brought.content.items():
        assert len(after[table]) == len(kept)
        for old, new in zip(kept, after[table], strict=True):
            # a table has got columns, and what it had is as it was
            assert old.items() <= new.items(), table
    assert all(not found for table, found in after.items() if table not in brought.content)


def test_the_functions_of_today_read_what_was_brought_forward(brought):
    with open_catalog(brought.path, read_only=True) as con:
        one, two = list_selections(con)
        assert (one.cost, one.config) == ({"draw": {"gradient_evaluations": 6}}, {"seed": 0})
        assert (one.unspent_samples, one.separation_p, two.recall_high) == (0, None, None)
        assert latest_selection(con, "gsm8k").selection_version == 2
        assert selection_evaluations(con, 1)["value"].to_list() == [0.5]
        exported = [(found.path, found.options) for found in exports_holding(con, ["a1"])]
    assert exported == ([("/old.jsonl", {})] if brought.schema >= 4 else [])
    assert withdrawn_ids(brought.path) == (frozenset({"a3"}) if brought.schema >= 4 else frozenset())


def test_the_catalog_before_the_migration_is_kept_as_a_backup(brought):
    (kept,) = backup_files(folder_beside(brought.path))
    assert (kept.kind, kept.schema) == ("migration", brought.schema)
    assert (content(kept.path), shape(kept.path)) == (brought.content, brought.shape)


def test_a_selection_is_published_after_those_brought_forward(first, add_pool, draft):
    with open_catalog(first) as con:
        add_pool(con, ["a1", "a2"], digest="another")
        assert publish_selections(con, [draft(pool_version=2)]) == [3]


def test_only_the_newest_backup_of_a_schema_is_kept(first):
    for _ in range(2):
        first.unlink()
        with open_catalog(make(first, 1)):
            pass
    assert backed_up(first) == [1]


def test_reading_migrates_nothing_and_keeps_no_copy(first):
    before = hashlib.sha256(first.read_bytes()).hexdigest()
    with pytest.raises(StaleArtifact, match="schema version 1"), open_catalog(first, read_only=True):
        pass
    with open_catalog(first, read_only=True, older=True):
        pass
    assert hashlib.sha256(first.read_bytes()).hexdigest() == before
    assert not folder_beside(first).exists()


@pytest.mark.parametrize("step", [1, 5])
def test_a_step_that_fails_leaves_the_catalog_as_it_was(first, monkeypatch, step):
    before, looks = content(first), shape(first)
    monkeypatch.setitem(MIGRATIONS, step, MIGRATIONS[step] + ";\nALTER TABLE absent ADD COLUMN x INTEGER")
    told = r"(?s)brought from schema version 1 to 6 .*as it was.*-schema-1"
    with pytest.raises(StaleArtifact, match=told), open_catalog(first):
        pass
    assert (content(first), shape(first)) == (before, looks)
    monkeypatch.undo()
    with open_catalog(first) as con:
        assert len(list_selections(con)) == 2


def test_without_room_for_the_backup_nothing_is_changed(first, monkeypatch):
    def full(con, final):
        raise duckdb.IOException("IO Error: Could not write: No space left on device")

    monkeypatch.setattr("clusterucb_core.store.migration.save_copy", full)
    before = content(first)
    told = r"could not be backed up.*No space left.*nothing was changed"
    with pytest.raises(StaleArtifact, match=told), open_catalog(first):
        pass
    assert content(first) == before


def test_threads_that_open_an_earlier_catalog_at_once_migrate_it_once(first):
    failed: list[Exception] = []

    def enter() -> None:
        try:
            with open_catalog(first, timeout_s=60):
                pass
        except Exception as error:  # noqa: BLE001 - whatever a thread meets is what this is about
            failed.append(error)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (failed, backed_up(first)) == ([], [1])
    with open_catalog(first, read_only=True) as con:
        found = [version for (version,) in rows(con, "SELECT schema_version FROM catalog_schema")]
    assert sorted(found) == list(range(1, SCHEMA_VERSION + 1))


@pytest.mark.slow
def test_a_process_killed_at_any_statement_leaves_the_catalog_as_it_was(catalog_path):
    first, killed = make(catalog_path, 1), 0
    before, looks = content(first), shape(first)
    for statements in range(0, 40, 3):
        done = subprocess.run(
            [sys.executable, "-c", OPEN_AND_DIE, str(first), str(statements)],
            capture_output=True,
            text=True,
            env=os.environ,
            check=False,
        )
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed += 1
        assert (content(first), shape(first)) == (before, looks), f"killed after {statements} statements"
    assert killed >= 5
    with open_catalog(first, read_only=True) as con:
        assert len(list_selections(con)) == 2


def test_a_damaged_catalog_is_not_migrated(first):
    image = bytearray(first.read_bytes())
    for block in range(12288 + 5000, len(image), 262144):
        image[block] ^= 1
    first.write_bytes(image)
    with pytest.raises(DamagedCatalog, match="no backup"), open_catalog(first):
        pass
    assert first.read_bytes() == image
