"""The step in which a file takes the name of the catalog; the whole is tested with `restoration`."""

import shutil

import pytest

from clusterucb_core.errors import CatalogBusy
from clusterucb_core.store import open_catalog, restoring
from clusterucb_core.store.backup_files import backup_files, described
from clusterucb_core.store.restoring import inspect_backup, put_in_place, read_known, replaced_path, stamp
from clusterucb_core.store.statements import rows, run


@pytest.fixture
def draft(catalog_path, empty_catalog):
    """A catalog in which something was erased, and an empty one that is to take its place."""
    catalog_path.parent.mkdir()
    shutil.copy(empty_catalog, catalog_path)
    with open_catalog(catalog_path) as con:
        run(con, "INSERT INTO erasures (sample_id, reason) VALUES ('old', 'test')")
    found = catalog_path.with_name("draft.duckdb")
    shutil.copy(empty_catalog, found)
    return found


def place(draft, path) -> None:
    put_in_place(draft, path, aside=replaced_path(path), read_at=stamp(path))


def erased(path) -> list[str]:
    with open_catalog(path, read_only=True) as con:
        return [name for (name,) in rows(con, "SELECT sample_id FROM erasures")]


def test_the_draft_bears_the_name_and_the_rights_and_the_old_file_is_kept(draft, catalog_path):
    catalog_path.chmod(0o640)
    aside = replaced_path(catalog_path)
    put_in_place(draft, catalog_path, aside=aside, read_at=stamp(catalog_path))
    assert (erased(catalog_path), erased(aside)) == ([], ["old"])
    assert catalog_path.stat().st_mode & 0o777 == 0o640
    assert not catalog_path.samefile(aside)


def test_where_links_are_not_to_be_had_the_old_file_is_copied(draft, catalog_path, monkeypatch):
    def refuse(*_):
        raise OSError("Operation not permitted")

    monkeypatch.setattr(restoring.os, "link", refuse)
    place(draft, catalog_path)
    (kept,) = backup_files(catalog_path.parent / "backups")
    assert (erased(catalog_path), erased(kept.path)) == ([], ["old"])


@pytest.mark.parametrize("step", ["link", "copymode", "replace"])
def test_stopped_before_any_step_the_old_catalog_bears_the_name(draft, catalog_path, monkeypatch, step):
    def killed(*_, **__):
        raise KeyboardInterrupt

    owner = {"link": restoring.os, "copymode": restoring.shutil, "replace": type(draft)}[step]
    monkeypatch.setattr(owner, step, killed)
    with pytest.raises(KeyboardInterrupt):
        place(draft, catalog_path)
    monkeypatch.undo()
    assert erased(catalog_path) == ["old"]
    place(draft, catalog_path)
    assert erased(catalog_path) == []


def test_a_link_to_the_catalog_stays_a_link(draft, catalog_path, tmp_path):
    link = tmp_path / "catalog.duckdb"
    link.symlink_to(catalog_path)
    place(draft, link)
    assert link.is_symlink()
    assert erased(catalog_path) == []


def test_a_catalog_that_is_not_there_is_nothing_to_keep_and_knows_nothing(draft, catalog_path):
    catalog_path.unlink()
    assert replaced_path(catalog_path) is None
    assert read_known(catalog_path).column("selections", "selection_key") == []
    place(draft, catalog_path)
    assert erased(catalog_path) == []


def test_what_somebody_records_meanwhile_is_not_left_behind(draft, catalog_path):
    before = stamp(catalog_path)
    with open_catalog(catalog_path) as con:
        run(con, "INSERT INTO withdrawals (sample_id, reason) VALUES ('a', 'asked for')")
    with pytest.raises(CatalogBusy, match=r"wrote to the catalog .* meanwhile"):
        put_in_place(draft, catalog_path, aside=replaced_path(catalog_path), read_at=before)
    assert erased(catalog_path) == ["old"]
    assert backup_files(catalog_path.parent / "backups") == []


def test_reading_changes_no_stamp(draft, catalog_path):
    before = stamp(catalog_path)
    assert read_known(catalog_path).column("erasures", "sample_id") == ["old"]
    assert stamp(catalog_path) == before


def test_a_backup_of_a_newer_program_is_no_damaged_one(draft):
    with open_catalog(draft) as con:
        run(con, "INSERT INTO catalog_schema (schema_version) VALUES (99)")
    fault = inspect_backup(described(draft)).fault
    assert fault is not None
    assert "schema version 99, this version of ClusterUCB knows 6" in fault
