import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from clusterucb_core.errors import CatalogBusy, MissingArtifact, StaleArtifact
from clusterucb_core.store import open_catalog, withdrawn_ids
from clusterucb_core.store.statements import rows, run, transaction
from clusterucb_core.trails import newest_trails
from clusterucb_core.workspace import Workspace

HOLD = """
import sys, time
from pathlib import Path
from clusterucb_core.store import open_catalog
with open_catalog(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(catalog_path: Path):
    """Start a process that holds the catalog for writing for some seconds."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(catalog_path), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_writing_makes_the_folder_and_the_schema(catalog_path):
    with open_catalog(catalog_path) as con:
        assert rows(con, "SELECT schema_version FROM catalog_schema") == [(6,)]


def test_opening_again_changes_nothing(catalog_path):
    with open_catalog(catalog_path) as con:
        first = rows(con, "SELECT schema_version, created_at::VARCHAR FROM catalog_schema")
    with open_catalog(catalog_path) as con:
        assert rows(con, "SELECT schema_version, created_at::VARCHAR FROM catalog_schema") == first


def test_leaving_moves_the_log_into_the_file(catalog_path):
    with open_catalog(catalog_path) as con, transaction(con):
        run(con, "INSERT INTO erasures (sample_id, reason) VALUES ('a', 'asked for')")
    assert [path.name for path in catalog_path.parent.iterdir()] == ["catalog.duckdb"]


def test_reading_an_absent_catalog_says_what_to_run(catalog_path):
    with (
        pytest.raises(MissingArtifact, match=r"no catalog at .*catalog\.duckdb; run"),
        open_catalog(catalog_path, read_only=True),
    ):
        pass
    assert not catalog_path.parent.exists()


def test_a_file_without_a_table_is_a_catalog_that_a_killed_process_was_about_to_make(catalog_path):
    catalog_path.parent.mkdir()
    duckdb.connect(catalog_path).close()
    with pytest.raises(MissingArtifact, match="no catalog at"), open_catalog(catalog_path, read_only=True):
        pass
    assert withdrawn_ids(catalog_path) == frozenset()
    assert newest_trails(Workspace(home=str(catalog_path.parent))) == []
    with open_catalog(catalog_path) as con:
        assert rows(con, "FROM selections") == []


def test_a_reader_cannot_write(catalog_path):
    with open_catalog(catalog_path):
        pass
    with (
        open_catalog(catalog_path, read_only=True) as con,
        pytest.raises(duckdb.InvalidInputException, match="read-only"),
    ):
        run(con, "INSERT INTO erasures (sample_id, reason) VALUES ('a', 'asked for')")


def test_a_newer_schema_is_refused_for_reading_and_writing(catalog_path):
    with open_catalog(catalog_path) as con:
        run(con, "INSERT INTO catalog_schema (schema_version) VALUES (99)")
    for read_only in (True, False):
        with (
            pytest.raises(StaleArtifact, match="schema version 99, this version of ClusterUCB knows 6"),
            open_catalog(catalog_path, read_only=read_only),
        ):
            pass


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "catalog.duckdb"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StaleArtifact, match="is damaged"), open_catalog(path):
        pass


def test_a_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.duckdb"
    with duckdb.connect(path) as other:
        run(other, "CREATE TABLE samples (x INTEGER)")
    with pytest.raises(StaleArtifact, match="holds no ClusterUCB tables"), open_catalog(path, read_only=True):
        pass
    with pytest.raises(StaleArtifact, match="give it a file of its own"), open_catalog(path):
        pass
    with duckdb.connect(path) as other:
        assert rows(other, "SELECT table_name FROM duckdb_tables()") == [("samples",)]


def test_an_error_in_the_block_rolls_back_and_frees_the_file(catalog_path):
    def write_and_fail() -> None:
        with open_catalog(catalog_path) as con, transaction(con):
            run(con, "INSERT INTO erasures (sample_id, reason) VALUES ('a', 'asked for')")
            raise KeyError("x")

    with pytest.raises(KeyError):
        write_and_fail()
    with open_catalog(catalog_path, read_only=True) as con:
        assert rows(con, "SELECT * FROM erasures") == []


@pytest.mark.parametrize("read_only", [True, False])
def test_a_second_process_waits_for_the_first(catalog_path, hold, read_only):
    hold(0.6)
    began = time.monotonic()
    with open_catalog(catalog_path, read_only=read_only, timeout_s=20) as con:
        assert rows(con, "SELECT count(*) FROM pools") == [(0,)]
    assert 0.2 < time.monotonic() - began < 15


def test_a_catalog_that_stays_locked_names_the_file_and_the_process(catalog_path, hold):
    holder = hold(60)
    with pytest.raises(CatalogBusy) as caught, open_catalog(catalog_path, timeout_s=0.3):
        pass
    assert str(catalog_path) in str(caught.value)
    assert re.search(rf"PID {holder.pid}\b", str(caught.value))


def test_readers_share_the_file(catalog_path):
    with open_catalog(catalog_path):
        pass
    with open_catalog(catalog_path, read_only=True) as one, open_catalog(catalog_path, read_only=True) as two:
        assert rows(one, "SELECT count(*) FROM pools") == rows(two, "SELECT count(*) FROM pools")


def test_a_reader_in_the_writing_process_waits_for_the_writer(catalog_path):
    with (
        open_catalog(catalog_path),
        pytest.raises(CatalogBusy, match=f"PID {os.getpid()}"),
        open_catalog(catalog_path, read_only=True, timeout_s=0.1),
    ):
        pass


def test_threads_that_make_the_catalog_at_once_all_get_it(catalog_path):
    seen: list[int] = []

    def enter() -> None:
        with open_catalog(catalog_path, timeout_s=20) as con:
            seen.append(rows(con, "SELECT count(*) FROM catalog_schema")[0][0])

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 6


def test_times_are_told_in_utc(con):
    assert rows(con, "SELECT current_setting('TimeZone')") == [("UTC",)]
