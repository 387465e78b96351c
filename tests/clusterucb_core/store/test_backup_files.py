import pytest

from clusterucb_core.store.backup_files import (
    backup_files,
    is_backup,
    new_backup_path,
    newest_backup,
    older_of_schema,
    superseded,
)

DAY = "catalog-202601{:02}T000000000000Z{}.duckdb"


@pytest.fixture
def folder(tmp_path):
    """Backups of every kind, made on the days of their numbers."""
    folder = tmp_path / "backups"
    folder.mkdir()
    names = [DAY.format(1, ""), DAY.format(2, "-schema-4"), DAY.format(3, ""), DAY.format(4, "-schema-5")]
    names += [DAY.format(5, "-schema-4"), DAY.format(6, ""), DAY.format(7, "-replaced")]
    for name in (*reversed(names), "catalog.draft", "catalog-x.duckdb.rewriting", "other.duckdb"):
        (folder / name).touch()
    return folder


def days(paths) -> list[str]:
    return [path.name[14:16] for path in paths]


def test_files_are_in_the_order_of_their_times_and_tell_what_they_are(folder):
    files = backup_files(folder)
    assert days(file.path for file in files) == ["01", "02", "03", "04", "05", "06", "07"]
    assert [file.schema for file in files] == [None, 4, None, 5, 4, None, None]
    assert [file.kind for file in files][-3:] == ["migration", "maintenance", "replaced"]
    assert files[0].told_time == "2026-01-01 00:00:00 UTC"


def test_a_rotation_counts_and_removes_only_what_maintenance_made(folder):
    assert days(superseded(folder, keep=1)) == ["01", "03"]
    assert superseded(folder, keep=3) == []


def test_the_newest_backup_of_each_schema_stays(folder):
    assert days(older_of_schema(folder, 4)) == ["02"]
    assert older_of_schema(folder, 5) == []


def test_the_newest_backup_is_none_that_a_restoration_set_aside(folder):
    newest = newest_backup(folder.parent / "catalog.duckdb")
    assert newest is not None
    assert days([newest.path]) == ["06"]
    assert newest_backup(folder / "catalog.duckdb") is None


def test_a_copy_that_somebody_named_is_dated_by_its_file(folder):
    (folder / "catalog-by-hand.duckdb").touch()
    assert backup_files(folder)[-1].kind == "other"
    assert days(superseded(folder, keep=1)) == ["01", "03"]


@pytest.mark.parametrize("ending", ["", "-schema-12", "-replaced"])
def test_a_new_name_is_read_as_it_was_meant(tmp_path, ending):
    path = new_backup_path(tmp_path / "backups", ending=ending)
    path.parent.mkdir()
    path.touch()
    (file,) = backup_files(path.parent)
    assert (file.path, file.schema) == (path, 12 if "12" in ending else None)
    assert file.kind == {"": "maintenance", "-replaced": "replaced"}.get(ending, "migration")
    assert is_backup(path)
    assert not is_backup(tmp_path / "catalog.duckdb")
