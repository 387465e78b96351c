import duckdb
import pytest

from clusterucb_core.errors import MissingArtifact
from clusterucb_core.store import backup_catalog, catalog_backups, open_catalog
from clusterucb_core.store.backup_files import backup_folder
from clusterucb_core.store.backups import remove_drafts
from clusterucb_core.store.statements import rows
from clusterucb_core.workspace import Workspace


@pytest.fixture
def workspace(catalog_path, add_pool) -> Workspace:
    with open_catalog(catalog_path) as con:
        add_pool(con, ["a1", "a2"])
    return Workspace(home=str(catalog_path.parent))


def test_a_backup_is_a_whole_catalog(workspace):
    path = backup_catalog(workspace)
    assert path.parent == backup_folder(workspace)
    with open_catalog(path, read_only=True) as con:
        assert rows(con, "SELECT sample_id FROM samples ORDER BY sample_id") == [("a1",), ("a2",)]
        assert rows(con, "FROM latest_selection") == []
    with open_catalog(workspace.catalog) as con:
        assert rows(con, "SELECT count(*) FROM samples") == [(2,)]


def test_the_newest_backups_are_kept(workspace):
    made = [backup_catalog(workspace, keep=2) for _ in range(4)]
    assert catalog_backups(workspace) == made[-2:]
    assert [path.name for path in sorted(backup_folder(workspace).iterdir())] == [p.name for p in made[-2:]]


def test_a_backup_needs_a_catalog_and_room_for_itself(tmp_path, workspace):
    with pytest.raises(MissingArtifact, match="no catalog"):
        backup_catalog(Workspace(home=str(tmp_path / "elsewhere")))
    with pytest.raises(ValueError, match="keep=0"):
        backup_catalog(workspace, keep=0)
    assert catalog_backups(workspace) == []


def test_what_a_killed_backup_left_is_replaced_and_can_be_removed(workspace):
    folder = backup_folder(workspace)
    folder.mkdir()
    for name in ("catalog.draft", "catalog.draft.wal", "catalog-1.duckdb.rewriting"):
        (folder / name).write_bytes(b"half a copy")
    path = backup_catalog(workspace)
    with duckdb.connect(path, read_only=True) as con:
        assert rows(con, "SELECT count(*) FROM samples") == [(2,)]
    assert remove_drafts(workspace) == 1
    assert list(folder.iterdir()) == [path]


def test_a_rotation_leaves_what_others_made_and_takes_logs_with_their_backups(workspace):
    folder = backup_folder(workspace)
    first = backup_catalog(workspace)
    log = first.with_name(f"{first.name}.wal")
    log.touch()
    others = [folder / f"catalog-20250101T000000000000Z-{end}.duckdb" for end in ("schema-4", "replaced")]
    for path in others:
        path.touch()
    newest = backup_catalog(workspace, keep=1)
    assert sorted(folder.iterdir()) == sorted([*others, newest])


def test_what_a_killed_restoration_left_is_removed_and_the_log_of_what_it_set_aside_is_not(workspace):
    for ending in ("", ".wal", ".rewriting"):
        workspace.catalog.with_name(f"catalog.duckdb.restoring{ending}").write_text("text")
    kept = backup_folder(workspace) / "catalog-20250101T000000000000Z-replaced.duckdb"
    log = kept.with_name(f"{kept.name}.wal")
    kept.parent.mkdir(exist_ok=True)
    for path in (kept, log):
        path.touch()
    assert remove_drafts(workspace) == 3
    assert sorted(path.name for path in workspace.catalog.parent.iterdir()) == ["backups", "catalog.duckdb"]
    assert (kept.is_file(), log.is_file()) == (True, True)
