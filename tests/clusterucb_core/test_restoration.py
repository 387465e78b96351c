"""A restored catalog is the backup, less what was erased since; nothing of the replaced one is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from clusterucb_core.errors import CatalogBusy, DamagedCatalog, MissingArtifact, StaleArtifact
from clusterucb_core.restoration import Restored, choose_backup, list_backups, restore_catalog
from clusterucb_core.store import (
    ExportRecord,
    backup_catalog,
    catalog_backups,
    erased_ids,
    list_selections,
    open_catalog,
    record_erasures,
    record_export,
    remove_drafts,
    restoring,
    withdraw_samples,
    withdrawn_in,
)
from clusterucb_core.store.statements import rows, run
from clusterucb_core.workspace import Workspace

SCHEMAS = Path(__file__).parent / "store" / "schemas"
NEEDLE = "an anchor of seven words lies here"
SELECTION = (
    "INSERT INTO selections (selection_version, selection_key, run_id, run_complete, period, pool_version, "
    "target, mode, policy, n_selected, budget_samples, gradient_evaluations, gradient_evaluations_reused, "
    "target_gradient_evaluations, cost, config, config_digest, code_version) "
    "VALUES (?, ?, ?, true, 1, 1, 'sums', 'static', 'full', 0, 0, 0, 0, 0, '{}', '{}', 'd', 'v')"
)
LEAVE_LOG = """
import os, sys
import duckdb
con = duckdb.connect(sys.argv[1])
con.execute("INSERT INTO erasures (sample_id, reason) VALUES ('in the log', 'test')")
os._exit(0)
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A catalog with two samples and the selection versions 1 and 2."""
    path = tmp_path_factory.mktemp("filled") / "catalog.duckdb"
    with open_catalog(path) as con:
        for name, text in (("a", NEEDLE), ("b", "another")):
            messages = json.dumps([{"role": "user", "content": text}])
            run(con, "INSERT INTO samples VALUES (?, 's', ?, 1, 1, 'p', 1)", [name, messages])
        run(con, "INSERT INTO quarantine VALUES (1, 's', 1, 'bad', NULL, ?)", [f"{{{NEEDLE}"])
        run(con, "INSERT INTO pools VALUES (1, NULL, now(), 2, 2, 0, 1, 'd')")
        for version in (1, 2):
            run(con, SELECTION, [version, f"key {version}", f"run {version}"])
    return path


@pytest.fixture
def workspace(tmp_path, filled):
    """A state folder whose catalog was backed up with the versions 1 and 2, and has 3 and 4 besides."""
    workspace = Workspace(home=str(tmp_path))
    shutil.copy(filled, workspace.catalog)
    backup_catalog(workspace)
    with open_catalog(workspace.catalog) as con:
        for version in (3, 4):
            run(con, SELECTION, [version, f"key {version}", f"run {version}"])
        record_export(con, ExportRecord(path="/out.jsonl", selection_version=3, format="jsonl", digest="d"))
    return workspace


def restored(workspace: Workspace, named: str | None = None) -> Restored:
    return restore_catalog(choose_backup(workspace, named), workspace)


def held(path: Path) -> list[int]:
    with open_catalog(path, read_only=True) as con:
        return [item.selection_version for item in list_selections(con)]


def flip_blocks(path: Path, *, first: int = 1) -> None:
    image = bytearray(path.read_bytes())
    for place in range(12288 + 1000 + first * 262144, len(image), 262144):
        image[place] ^= 1
    path.write_bytes(image)


def test_the_catalog_is_that_of_the_backup_and_the_replaced_one_is_kept(workspace):
    done = restored(workspace)
    assert held(workspace.catalog) == [1, 2]
    assert (done.lost, done.returned, done.unread) == ((3, 4), (), ())
    assert done.exports == ("/out.jsonl",)
    assert done.replaced is not None
    assert held(Path(done.replaced)) == [1, 2, 3, 4]
    assert Path(done.replaced) in catalog_backups(workspace), "an erasure rewrites it"
    assert sorted(path.name for path in workspace.catalog.parent.iterdir()) == ["backups", "catalog.duckdb"]


def test_a_restoration_can_be_taken_back(workspace):
    first = restored(workspace)
    second = restored(workspace, Path(first.replaced or "").name)
    assert held(workspace.catalog) == [1, 2, 3, 4]
    assert (second.lost, second.returned) == ((), (3, 4))


def test_numbers_of_lost_versions_are_remembered_by_every_later_restoration(workspace):
    for _ in range(2):
        restored(workspace)
        with open_catalog(workspace.catalog, read_only=True) as con:
            assert rows(con, "SELECT highest_selection, highest_pool FROM restorations") == [(4, 1)]


def test_what_was_erased_since_is_erased_again(workspace):
    with open_catalog(workspace.catalog) as con:
        assert withdraw_samples(con, ["a"], reason="asked for") == ["a"]
        record_erasures(con, ["a"], reason="asked for")
    assert any(NEEDLE.encode() in path.read_bytes() for path in catalog_backups(workspace))
    done = restored(workspace)
    assert (done.erased.samples, done.erased.quarantine) == (1, 1)
    assert done.carried == {"artifact_roots": 0, "erasures": 1, "withdrawals": 1}
    assert NEEDLE.encode() not in workspace.catalog.read_bytes()
    with open_catalog(workspace.catalog, read_only=True) as con:
        assert (withdrawn_in(con), erased_ids(con)) == (frozenset({"a"}), frozenset({"a"}))


def test_what_was_withdrawn_since_stays_withdrawn_and_keeps_its_text(workspace):
    with open_catalog(workspace.catalog) as con:
        withdraw_samples(con, ["a"], reason="asked for")
    restored(workspace)
    with open_catalog(workspace.catalog, read_only=True) as con:
        assert (withdrawn_in(con), erased_ids(con)) == (frozenset({"a"}), frozenset())
        assert len(rows(con, "FROM samples WHERE messages IS NOT NULL")) == 2


def test_a_damaged_catalog_is_replaced_and_kept_as_it_was(workspace):
    flip_blocks(workspace.catalog)
    image = workspace.catalog.read_bytes()
    with pytest.raises(DamagedCatalog, match="clusterucb restore"):
        held(workspace.catalog)
    done = restored(workspace)
    assert held(workspace.catalog) == [1, 2]
    assert done.unread
    assert Path(done.replaced or "").read_bytes() == image


def test_of_a_catalog_that_cannot_be_opened_nothing_is_claimed_to_be_known(workspace, tmp_path):
    result = tmp_path / "artifacts" / "runs" / "f" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"versions": [3, 9], "pool_version": 4}))
    workspace.catalog.write_bytes(bytes(50000))
    done = restored(workspace)
    assert (done.lost, done.returned, done.carried) == (None, None, {})
    with open_catalog(workspace.catalog, read_only=True) as con:
        assert rows(con, "SELECT highest_selection, highest_pool FROM restorations") == [(9, 4)]


def test_a_catalog_that_is_gone_comes_back(workspace):
    workspace.catalog.unlink()
    done = restored(workspace)
    assert (held(workspace.catalog), done.replaced, done.lost, done.returned) == ([1, 2], None, (), (1, 2))


def test_the_log_of_the_replaced_catalog_goes_with_it_and_is_not_replayed(workspace):
    subprocess.run([sys.executable, "-c", LEAVE_LOG, str(workspace.catalog)], check=True)
    log = workspace.catalog.with_name("catalog.duckdb.wal")
    assert log.is_file()
    flip_blocks(workspace.catalog, first=0)  # it cannot be opened, so the log cannot be moved into it
    before = log.read_bytes()
    done = restored(workspace)
    assert not log.exists()
    kept = Path(f"{done.replaced}.wal")
    assert kept.read_bytes() == before
    with open_catalog(workspace.catalog, read_only=True) as con:
        assert erased_ids(con) == frozenset()
    remove_drafts(workspace)
    assert kept.is_file()


def test_the_log_of_a_sound_catalog_is_moved_into_the_file_that_is_kept(workspace):
    subprocess.run([sys.executable, "-c", LEAVE_LOG, str(workspace.catalog)], check=True)
    done = restored(workspace)
    with open_catalog(Path(done.replaced or ""), read_only=True) as con:
        assert erased_ids(con) == frozenset({"in the log"})
    with open_catalog(workspace.catalog, read_only=True) as con:
        assert erased_ids(con) == frozenset({"in the log"}), "it was carried over"


def test_an_old_log_beside_a_restored_catalog_is_refused(workspace, tmp_path):
    """What a restoration leaves that is killed between its last two steps."""
    subprocess.run([sys.executable, "-c", LEAVE_LOG, str(workspace.catalog)], check=True)
    log = workspace.catalog.with_name("catalog.duckdb.wal")
    shutil.copy(log, tmp_path / "log")
    restored(workspace)
    shutil.move(tmp_path / "log", log)
    with pytest.raises(DamagedCatalog, match="WAL does not match database file"):
        held(workspace.catalog)
    restored(workspace)
    assert held(workspace.catalog) == [1, 2]


@pytest.mark.parametrize("step", ["rewrite_catalog", "put_in_place"])
def test_a_restoration_that_fails_leaves_the_catalog(workspace, monkeypatch, step):
    def fail(*_, **__):
        raise OSError("no space")

    monkeypatch.setattr(f"clusterucb_core.restoration.{step}", fail)
    with pytest.raises(OSError, match="no space"):
        restored(workspace)
    assert held(workspace.catalog) == [1, 2, 3, 4]
    assert sorted(path.name for path in workspace.catalog.parent.iterdir()) == ["backups", "catalog.duckdb"]


def test_a_catalog_that_another_process_has_open_is_not_replaced(workspace, monkeypatch):
    hold = (
        "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(workspace.catalog)]
    put = restoring.put_in_place

    def put_while_held(*arguments, **named):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            try:
                put(*arguments, **named)
            finally:
                holder.communicate("")

    monkeypatch.setattr("clusterucb_core.restoration.put_in_place", put_while_held)
    with pytest.raises(CatalogBusy, match=r"has the catalog .* open.*nothing was changed"):
        restored(workspace)
    assert held(workspace.catalog) == [1, 2, 3, 4]
    assert len(catalog_backups(workspace)) == 1


def test_a_damaged_backup_is_passed_over_unless_it_is_named(workspace):
    whole = catalog_backups(workspace)[0]
    damaged = backup_catalog(workspace)
    flip_blocks(damaged)
    assert choose_backup(workspace, None).path == str(whole)
    with pytest.raises(DamagedCatalog, match=r"cannot be restored.*is damaged.*--list.*nothing was changed"):
        choose_backup(workspace, damaged.name)
    found = list_backups(workspace)
    assert [(state.selections, state.fault is None) for state in found] == [((1, 2), True), ((), False)]
    flip_blocks(whole)
    with pytest.raises(DamagedCatalog):
        choose_backup(workspace, None)


def test_a_backup_that_is_none_is_refused(workspace, tmp_path):
    with pytest.raises(MissingArtifact, match=r"no backup 'x'.*--list"):
        choose_backup(workspace, "x")
    with duckdb.connect(tmp_path / "other.duckdb") as con:
        con.execute("CREATE TABLE other (i INTEGER)")
    with pytest.raises(StaleArtifact, match="holds no ClusterUCB tables"):
        choose_backup(workspace, str(tmp_path / "other.duckdb"))
    with pytest.raises(MissingArtifact, match="clusterucb maintenance"):
        choose_backup(Workspace(home=str(tmp_path / "elsewhere")), None)


def test_a_backup_of_an_earlier_schema_is_brought_to_the_present_one(workspace, tmp_path):
    early = tmp_path / "backups" / "catalog-20260101T000000000000Z-schema-1.duckdb"
    with duckdb.connect(early) as con:
        con.execute((SCHEMAS / "schema_1.sql").read_text("utf-8"))
    image = early.read_bytes()
    with open_catalog(workspace.catalog) as con:
        withdraw_samples(con, ["a"], reason="asked for")
    done = restored(workspace, early.name)
    assert (done.backup.schema_version, done.carried["withdrawals"]) == (1, 1)
    assert (held(workspace.catalog), early.read_bytes()) == ([1, 2], image)
    assert len(catalog_backups(workspace)) == 3, "the backup, the early one, and the replaced catalog"


def test_a_backup_from_elsewhere_can_be_restored(workspace, tmp_path):
    moved = tmp_path / "disk" / "copy.duckdb"
    moved.parent.mkdir()
    shutil.move(catalog_backups(workspace)[0], moved)
    assert restored(workspace, str(moved)).backup.kind == "other"
    assert held(workspace.catalog) == [1, 2]
    assert moved.is_file()
