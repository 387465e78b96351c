import shutil

import pytest

from clusterucb_core.errors import StaleArtifact
from clusterucb_core.store import open_catalog
from clusterucb_core.store.statements import rows, run

CONTRACT = {
    "pools": "pool_version parent_version created_at n_samples n_added n_removed n_quarantined digest",
    "samples": "sample_id source messages n_chars first_pool_version",
    "pool_samples": "pool_version sample_id",
    "quarantine": "pool_version source row_number reason detail raw",
    "exclusions": "scope scope_id sample_id stage reason detail",
    "feature_rows": "feature_space sample_id shard row_in_shard",
    "clusters": "clustering sample_id cluster",
    "pulls": "selection_version step round cluster sample_id reward kind bound arm_mean arm_std arm_left",
    "selections": (
        "selection_version run_id period created_at pool_version target mode policy n_selected "
        "budget_samples gradient_evaluations gradient_evaluations_reused target_gradient_evaluations "
        "selection_flops full_selection_flops cost estimated_recall recall_low recall_high config "
        "config_digest code_version mlflow_run_id flow_run_id"
    ),
    "selection_samples": "selection_version rank sample_id influence cluster",
    "evaluations": "selection_version run_id subject task metric value low high n target",
    "erasures": "sample_id at reason",
    "withdrawals": "sample_id at reason",
    "exports": "path selection_version format at",
    "artifact_roots": "path",
    "run_stages": "run_id flow_run_id stage calls cached seconds",
    "latest_selection": "selection_version run_id period target",
}


@pytest.fixture(scope="module")
def con(empty_catalog):
    with open_catalog(empty_catalog, read_only=True) as connection:
        yield connection


@pytest.mark.parametrize("table", CONTRACT)
def test_a_table_has_the_columns_of_the_contract(con, table):
    query = "SELECT column_name FROM duckdb_columns() WHERE table_name = ?"
    found = {name for (name,) in rows(con, query, [table])}
    assert set(CONTRACT[table].split()) <= found


@pytest.mark.parametrize(
    ("table", "column", "type_name"),
    [
        ("samples", "messages", "JSON"),
        ("selections", "cost", "JSON"),
        ("selections", "config", "JSON"),
        ("pools", "created_at", "TIMESTAMP WITH TIME ZONE"),
        ("selections", "created_at", "TIMESTAMP WITH TIME ZONE"),
        ("erasures", "at", "TIMESTAMP WITH TIME ZONE"),
        ("withdrawals", "at", "TIMESTAMP WITH TIME ZONE"),
        ("exports", "at", "TIMESTAMP WITH TIME ZONE"),
        ("pulls", "reward", "DOUBLE"),
    ],
)
def test_json_is_json_and_times_know_their_zone(con, table, column, type_name):
    query = "SELECT data_type FROM duckdb_columns() WHERE table_name = ? AND column_name = ?"
    assert rows(con, query, [table, column]) == [(type_name,)]


SINCE_VERSION_1 = ("unspent_samples", "estimated_captured", "captured_low", "captured_high", "separation_p")


@pytest.fixture
def first_catalog(catalog_path, empty_catalog):
    """A catalog as schema version 1 made it, with one selection."""
    catalog_path.parent.mkdir()
    shutil.copy(empty_catalog, catalog_path)
    with open_catalog(catalog_path) as con:
        run(con, "DROP VIEW latest_selection")
        for column in SINCE_VERSION_1:
            run(con, f"ALTER TABLE selections DROP COLUMN {column}")
        run(con, "ALTER TABLE evaluations DROP COLUMN target")
        for table in ("withdrawals", "exports", "artifact_roots", "run_stages"):
            run(con, f"DROP TABLE {table}")
        run(con, "CREATE VIEW latest_selection AS FROM selections")
        run(con, "UPDATE catalog_schema SET schema_version = 1")
        run(
            con,
            "INSERT INTO selections VALUES (1, 'key', 'run', true, 1, now(), 1, 'gsm8k', 'static', 'linucb',"
            " 5, 20, 20, 0, 3, 1.0, 2.0, '{}', 0.5, 0.4, 0.6, '{}', 'digest', '0.1.0', NULL, NULL)",
        )
    return catalog_path


def test_a_catalog_of_version_1_is_migrated_when_it_is_opened_for_writing(first_catalog):
    with open_catalog(first_catalog) as con:
        assert rows(con, "SELECT max(schema_version) FROM catalog_schema") == [(5,)]
        columns = ", ".join(("selection_version", "recall_high", *SINCE_VERSION_1))
        for table in ("selections", "latest_selection"):
            assert rows(con, f"SELECT {columns} FROM {table}") == [(1, 0.6, 0, None, None, None, None)]
        assert rows(con, "SELECT target FROM evaluations") == []
        for table in ("withdrawals", "exports", "artifact_roots", "run_stages"):
            assert rows(con, f"SELECT * FROM {table}") == []


def test_a_reader_of_an_older_catalog_is_told_how_to_migrate_it(first_catalog):
    with (
        pytest.raises(StaleArtifact, match=r"version 1.*clusterucb ingest"),
        open_catalog(first_catalog, read_only=True),
    ):
        pass


def test_an_older_catalog_is_read_where_that_is_asked_for(first_catalog):
    with open_catalog(first_catalog, read_only=True, older=True) as con:
        assert rows(con, "SELECT selection_version FROM selections") == [(1,)]
