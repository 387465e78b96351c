import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from clusterucb_core.errors import StaleArtifact
from clusterucb_core.store import open_catalog, publish_selections, rewrite_catalog
from clusterucb_core.store.connection import wait_for_catalog
from clusterucb_core.store.statements import rows, run, transaction

WRITE = """
import sys
from pathlib import Path
from clusterucb_core.store import open_catalog
from clusterucb_core.store.statements import run, transaction
written = 0
while True:
    with open_catalog(Path(sys.argv[1]), timeout_s=60) as con, transaction(con):
        run(con, "INSERT INTO erasures (sample_id, reason) VALUES (?, 'writer')", [f"w{written}"])
    written += 1
    print(written, flush=True)
"""


@pytest.fixture
def filled(catalog_path, add_pool, draft) -> Path:
    """A catalog with two selections and an old text that was replaced in it."""
    with open_catalog(catalog_path) as con:
        add_pool(con, ["a1", "a2", "a3"])
        publish_selections(con, [draft(["a1", "a2"]), draft(["a2", "a3"], run_id="run-2")])
    return catalog_path


def described(path: Path):
    with duckdb.connect(path, read_only=True) as con:
        tables = rows(con, "SELECT table_name, sql FROM duckdb_tables() ORDER BY table_name")
        content = [repr(rows(con, f"FROM {name} ORDER BY ALL")) for name, _ in tables]  # NaN is not itself
        views = rows(con, "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal")
        return tables, content, views


def erase_first(con):
    run(con, "UPDATE samples SET messages = NULL WHERE sample_id = 'a1'")


def test_the_bytes_of_what_was_replaced_are_gone_only_after_the_rewriting(filled):
    with open_catalog(filled) as con:
        run(con, "UPDATE samples SET messages = '[\"needle\"]' WHERE sample_id = 'a1'")
    assert b"needle" in filled.read_bytes()
    with open_catalog(filled) as con:
        erase_first(con)
    assert b"needle" in filled.read_bytes(), "DuckDB overwrites freed blocks now: is a copy still needed?"
    rewrite_catalog(filled, erase_first)
    assert b"needle" not in filled.read_bytes()
    assert b"answer to a2" in filled.read_bytes()


def test_tables_keys_defaults_view_and_macro_survive(filled):
    before = described(filled)
    rewrite_catalog(filled, lambda con: None)
    assert described(filled) == before
    with open_catalog(filled) as con:
        assert rows(con, "SELECT selection_version FROM latest_selection") == [(2,)]
        assert len(rows(con, "FROM selection_diff(1, 2)")) == 3
        run(con, "INSERT INTO erasures (sample_id, reason) VALUES ('a1', 'asked for')")
        assert rows(con, 'SELECT "at" IS NOT NULL FROM erasures') == [(True,)]
        with pytest.raises(duckdb.ConstraintException, match="sample_id"):
            run(con, "INSERT INTO erasures (sample_id, reason) VALUES ('a1', 'again')")


def test_the_result_of_the_change_is_returned_and_nothing_is_left_beside_the_file(filled):
    filled.chmod(0o640)
    assert rewrite_catalog(filled, lambda con: rows(con, "SELECT count(*) FROM samples")) == [(3,)]
    assert [path.name for path in filled.parent.iterdir()] == ["catalog.duckdb"]
    assert filled.stat().st_mode & 0o777 == 0o640


def test_a_change_that_fails_leaves_the_file_as_it_was(filled):
    def fail(con):
        erase_first(con)
        raise KeyError("x")

    before = described(filled)
    with pytest.raises(KeyError):
        rewrite_catalog(filled, fail)
    assert described(filled) == before
    assert [path.name for path in filled.parent.iterdir()] == ["catalog.duckdb"]


def test_a_copy_that_is_not_like_the_catalog_is_thrown_away(filled, monkeypatch):
    counts = iter([[1], [2]])
    monkeypatch.setattr("clusterucb_core.store.copying._counts", lambda con, name: next(counts))
    before = described(filled)
    with pytest.raises(StaleArtifact, match="is not like it"):
        rewrite_catalog(filled, lambda con: None)
    assert described(filled) == before
    assert [path.name for path in filled.parent.iterdir()] == ["catalog.duckdb"]


def test_what_a_killed_rewriting_left_is_no_hindrance(filled):
    for suffix in (".rewriting", ".rewriting.wal"):
        filled.with_name(filled.name + suffix).write_bytes(b"half a copy")
    spilled = filled.with_name(filled.name + ".tmp")
    spilled.mkdir()
    (spilled / "block").write_bytes(b"spilled text")
    rewrite_catalog(filled, lambda con: None)
    assert [path.name for path in filled.parent.iterdir()] == ["catalog.duckdb"]


def test_a_link_to_the_catalog_stays_a_link(filled, tmp_path):
    link = tmp_path / "link.duckdb"
    link.symlink_to(filled)
    rewrite_catalog(link, erase_first)
    assert link.is_symlink()
    assert b"answer to a1" not in filled.read_bytes()


def test_no_row_of_a_process_that_writes_meanwhile_is_lost(filled):
    command = [sys.executable, "-c", WRITE, str(filled)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        for _ in range(8):
            assert writer.stdout.readline()
            rewrite_catalog(filled, erase_first, timeout_s=60)
        written = int(writer.stdout.readline())
    finally:
        writer.terminate()
        rest = writer.communicate()[0].split()
    written = int(rest[-1]) if rest else written
    with open_catalog(filled, timeout_s=20) as con:
        found = rows(con, "SELECT sample_id FROM erasures")
    # the last row may have been written and not yet told
    assert {f"w{number}" for number in range(written)} <= {sample_id for (sample_id,) in found}
    assert len(found) in (written, written + 1)


def test_who_opened_the_file_in_the_moment_of_its_replacement_opens_it_again(filled, tmp_path):
    """The file is replaced between its opening and the look at its name, as seen by a process that waited."""
    other = tmp_path / "other.duckdb"
    with duckdb.connect(other) as con:
        run(con, "CREATE TABLE other (i INTEGER)")
    opened = []

    def connect():
        opened.append(duckdb.connect(filled))
        if len(opened) == 1:
            other.replace(filled)
        return opened[-1]

    con = wait_for_catalog(filled, connect, timeout_s=5)
    assert len(opened) == 2
    assert rows(con, "SELECT table_name FROM duckdb_tables()") == [("other",)]
    con.close()


def test_an_open_connection_of_this_process_is_waited_for(filled):
    with open_catalog(filled) as con, transaction(con), pytest.raises(Exception, match="stayed locked"):
        rewrite_catalog(filled, erase_first, timeout_s=0.2)
