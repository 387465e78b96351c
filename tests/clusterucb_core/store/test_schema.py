import pytest

from clusterucb_core.store import open_catalog
from clusterucb_core.store.statements import rows

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
    "comparisons": (
        "selection_version run_id target baseline task metric difference low high higher_is_better n n_seeds"
    ),
    "restorations": "at backup replaced highest_selection highest_pool",
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
