import duckdb
import pytest

from clusterucb_core.errors import StaleArtifact
from clusterucb_core.store import open_catalog
from clusterucb_core.store.copying import save_copy
from clusterucb_core.store.statements import rows


def test_a_copy_is_whole_and_leaves_the_connection_as_it_was(catalog_path, tmp_path, add_pool):
    out = tmp_path / "it's" / "copy.duckdb"
    with open_catalog(catalog_path) as con:
        add_pool(con, ["a1", "a2"])
        save_copy(con, out)
        assert rows(con, "SELECT count(*) FROM duckdb_databases() WHERE NOT internal") == [(1,)]
    with open_catalog(out, read_only=True) as con:
        assert rows(con, "SELECT sample_id FROM samples ORDER BY ALL") == [("a1",), ("a2",)]
    assert [path.name for path in out.parent.iterdir()] == ["copy.duckdb"]


@pytest.mark.parametrize("fault", [StaleArtifact("is not like it"), duckdb.IOException("No space left")])
def test_a_copy_that_fails_leaves_no_file_and_a_connection_that_works(con, tmp_path, monkeypatch, fault):
    def fail(*_):
        raise fault

    monkeypatch.setattr("clusterucb_core.store.copying._counts", fail)
    with pytest.raises(type(fault)):
        save_copy(con, tmp_path / "copies" / "copy.duckdb")
    assert list((tmp_path / "copies").iterdir()) == []
    assert rows(con, "SELECT count(*) FROM samples") == [(0,)]
    monkeypatch.undo()
    save_copy(con, tmp_path / "copies" / "copy.duckdb")
    assert len(list((tmp_path / "copies").iterdir())) == 1
