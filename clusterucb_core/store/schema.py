"""The tables, the view and the macro of the catalog, their version, and what brings an older one to it.

Whoever changes a table raises `SCHEMA_VERSION`, adds a step to `MIGRATIONS`, and freezes the schema before
the change in `tests/clusterucb_core/store/schemas/`.
"""

import duckdb

from clusterucb_core.errors import StaleArtifact
from clusterucb_core.store.statements import rows

SCHEMA_VERSION = 6

_TABLES = """
CREATE TABLE catalog_schema (
    schema_version INTEGER PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TABLE pools (
    pool_version INTEGER PRIMARY KEY,
    parent_version INTEGER,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    n_samples BIGINT NOT NULL,
    n_added BIGINT NOT NULL,
    n_removed BIGINT NOT NULL,
    n_quarantined BIGINT NOT NULL,
    digest VARCHAR NOT NULL
);
CREATE TABLE samples (
    sample_id VARCHAR PRIMARY KEY,
    source VARCHAR NOT NULL,
    messages JSON,
    n_chars BIGINT NOT NULL,
    first_pool_version INTEGER NOT NULL,
    path VARCHAR,
    row_number BIGINT
);
CREATE TABLE pool_samples (
    pool_version INTEGER,
    sample_id VARCHAR,
    PRIMARY KEY (pool_version, sample_id)
);
CREATE TABLE quarantine (
    pool_version INTEGER NOT NULL,
    source VARCHAR,
    row_number BIGINT,
    reason VARCHAR NOT NULL,
    detail VARCHAR,
    raw VARCHAR
);
CREATE TABLE exclusions (
    scope VARCHAR CHECK (scope IN ('selection', 'features')),
    scope_id VARCHAR,
    sample_id VARCHAR,
    stage VARCHAR,
    reason VARCHAR,
    detail VARCHAR,
    PRIMARY KEY (scope, scope_id, sample_id, stage, reason)
);
CREATE TABLE feature_rows (
    feature_space VARCHAR,
    sample_id VARCHAR,
    shard VARCHAR NOT NULL,
    row_in_shard BIGINT NOT NULL,
    PRIMARY KEY (feature_space, sample_id)
);
CREATE TABLE clusters (
    clustering VARCHAR,
    sample_id VARCHAR,
    cluster INTEGER NOT NULL,
    PRIMARY KEY (clustering, sample_id)
);
CREATE TABLE selections (
    selection_version INTEGER PRIMARY KEY,
    selection_key VARCHAR NOT NULL UNIQUE,
    run_id VARCHAR NOT NULL,
    run_complete BOOLEAN NOT NULL,
    period INTEGER NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    pool_version INTEGER NOT NULL,
    target VARCHAR NOT NULL,
    mode VARCHAR NOT NULL,
    policy VARCHAR NOT NULL,
    n_selected BIGINT NOT NULL,
    budget_samples BIGINT NOT NULL,
    gradient_evaluations BIGINT NOT NULL,
    gradient_evaluations_reused BIGINT NOT NULL,
    target_gradient_evaluations BIGINT NOT NULL,
    selection_flops DOUBLE,
    full_selection_flops DOUBLE,
    cost JSON NOT NULL,
    estimated_recall DOUBLE,
    recall_low DOUBLE,
    recall_high DOUBLE,
    unspent_samples BIGINT NOT NULL DEFAULT 0,
    estimated_captured DOUBLE,
    captured_low DOUBLE,
    captured_high DOUBLE,
    separation_p DOUBLE,
    config JSON NOT NULL,
    config_digest VARCHAR NOT NULL,
    code_version VARCHAR NOT NULL,
    mlflow_run_id VARCHAR,
    flow_run_id VARCHAR
);
CREATE TABLE selection_samples (
    selection_version INTEGER,
    rank INTEGER,
    sample_id VARCHAR NOT NULL,
    influence DOUBLE,
    cluster INTEGER,
    PRIMARY KEY (selection_version, rank)
);
CREATE TABLE pulls (
    selection_version INTEGER,
    step BIGINT,
    round BIGINT NOT NULL,
    cluster INTEGER,
    sample_id VARCHAR NOT NULL,
    reward DOUBLE,
    kind VARCHAR NOT NULL CHECK (kind IN ('cold_start', 'draw', 'audit', 'known')),
    bound DOUBLE,
    arm_mean DOUBLE,
    arm_std DOUBLE,
    arm_left BIGINT,
    PRIMARY KEY (selection_version, step)
);
CREATE TABLE evaluations (
    selection_version INTEGER,
    run_id VARCHAR NOT NULL,
    subject VARCHAR NOT NULL,
    task VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    value DOUBLE,
    low DOUBLE,
    high DOUBLE,
    n BIGINT NOT NULL,
    target VARCHAR
);
CREATE TABLE erasures (
    sample_id VARCHAR PRIMARY KEY,
    "at" TIMESTAMPTZ NOT NULL DEFAULT now(),
    reason VARCHAR NOT NULL
);
"""

# What a deletion request needs: who asked for what, and where text was written outside of the catalog.
_WITHDRAWAL_TABLES = """
CREATE TABLE withdrawals (
    sample_id VARCHAR PRIMARY KEY,
    "at" TIMESTAMPTZ NOT NULL DEFAULT now(),
    reason VARCHAR NOT NULL
);
CREATE TABLE exports (
    path VARCHAR PRIMARY KEY,
    selection_version INTEGER NOT NULL,
    format VARCHAR NOT NULL,
    "at" TIMESTAMPTZ NOT NULL DEFAULT now(),
    digest VARCHAR NOT NULL
);
CREATE TABLE artifact_roots (
    path VARCHAR PRIMARY KEY
);
"""

_RUN_TABLES = """
CREATE TABLE run_stages (
    run_id VARCHAR,
    flow_run_id VARCHAR,
    stage VARCHAR,
    place INTEGER NOT NULL,
    calls BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    seconds DOUBLE NOT NULL,
    PRIMARY KEY (run_id, flow_run_id, stage)
);
"""

# What brings the table of exports to the present: everything that writing one again depends on.
_EXPORT_OPTIONS = "ALTER TABLE exports ADD COLUMN options JSON;"

# The selection against each baseline, on the same test rows.
_COMPARISON_TABLES = """
CREATE TABLE comparisons (
    selection_version INTEGER,
    run_id VARCHAR,
    target VARCHAR NOT NULL,
    baseline VARCHAR,
    task VARCHAR,
    metric VARCHAR,
    difference DOUBLE NOT NULL,
    low DOUBLE,
    high DOUBLE,
    higher_is_better BOOLEAN,
    n BIGINT NOT NULL,
    n_seeds BIGINT NOT NULL,
    PRIMARY KEY (selection_version, run_id, baseline, task, metric)
);
"""

# What `restore` did. Numbers that a lost version bore are not given again: they stand in reports and exports.
_RESTORATION_TABLES = """
CREATE TABLE restorations (
    "at" TIMESTAMPTZ PRIMARY KEY DEFAULT now(),
    backup VARCHAR NOT NULL,
    replaced VARCHAR,
    highest_selection INTEGER NOT NULL,
    highest_pool INTEGER NOT NULL
);
"""

# A run is as new as its newest version; within it the last period counts.
LATEST_SELECTION = """
CREATE VIEW latest_selection AS
WITH complete AS (
    SELECT *, max(selection_version) OVER (PARTITION BY target, run_id) AS run_version
    FROM selections WHERE run_complete
)
SELECT * EXCLUDE (run_version) FROM complete
QUALIFY row_number() OVER (
    PARTITION BY target ORDER BY run_version DESC, period DESC, selection_version DESC
) = 1
"""

_SELECTION_DIFF = """
CREATE MACRO selection_diff(a, b) AS TABLE
SELECT
    coalesce(old_rows.sample_id, new_rows.sample_id) AS sample_id,
    CASE WHEN old_rows.sample_id IS NULL THEN 'added'
         WHEN new_rows.sample_id IS NULL THEN 'removed'
         ELSE 'kept' END AS change,
    old_rows.rank AS rank_a,
    new_rows.rank AS rank_b
FROM (SELECT sample_id, rank FROM selection_samples WHERE selection_version = a) AS old_rows
FULL JOIN (SELECT sample_id, rank FROM selection_samples WHERE selection_version = b) AS new_rows
ON old_rows.sample_id = new_rows.sample_id
"""


# What brings a catalog of a version to the next one; a view that reads all columns is made anew.
MIGRATIONS = {
    1: """
ALTER TABLE selections ADD COLUMN unspent_samples BIGINT DEFAULT 0;
ALTER TABLE selections ADD COLUMN estimated_captured DOUBLE;
ALTER TABLE selections ADD COLUMN captured_low DOUBLE;
ALTER TABLE selections ADD COLUMN captured_high DOUBLE;
ALTER TABLE selections ADD COLUMN separation_p DOUBLE;
""",
    2: "ALTER TABLE evaluations ADD COLUMN target VARCHAR;",
    3: _WITHDRAWAL_TABLES,
    4: f"{_RUN_TABLES}{_COMPARISON_TABLES}{_EXPORT_OPTIONS}",
    # the first step left out that a new catalog takes no NULL there
    5: f"{_RESTORATION_TABLES}ALTER TABLE selections ALTER COLUMN unspent_samples SET NOT NULL;",
}

STATEMENTS = (
    *(_TABLES + _WITHDRAWAL_TABLES + _RUN_TABLES + _COMPARISON_TABLES + _RESTORATION_TABLES).split(";\n"),
    _EXPORT_OPTIONS,
    LATEST_SELECTION,
    _SELECTION_DIFF,
)


def check_schema(con: duckdb.DuckDBPyConnection, *, older: bool = False) -> None:
    """Refuse a catalog whose tables this version does not know; `older` takes one of an earlier version.

    Raises:
        StaleArtifact: there is no schema, a newer one, or an older one that no command has migrated yet.
    """
    if not has_schema(con):
        raise StaleArtifact("the database holds no ClusterUCB tables; run `clusterucb run` first")
    found = schema_version(con)
    if found < SCHEMA_VERSION and not older:
        raise StaleArtifact(
            f"the catalog has schema version {found}, this version of ClusterUCB reads {SCHEMA_VERSION}; "
            "`clusterucb ingest` or `clusterucb run` brings it there"
        )
    if found > SCHEMA_VERSION:
        raise StaleArtifact(
            f"the catalog has schema version {found}, this version of ClusterUCB knows {SCHEMA_VERSION}; "
            "use the version of ClusterUCB that wrote it, or a newer one"
        )


def schema_version(con: duckdb.DuckDBPyConnection) -> int:
    """Return the schema version of a catalog."""
    return rows(con, "SELECT max(schema_version) FROM catalog_schema")[0][0]


def has_tables(con: duckdb.DuckDBPyConnection) -> bool:
    """Return whether a database holds tables, whoever made them."""
    return bool(rows(con, "SELECT 1 FROM duckdb_tables() WHERE NOT internal LIMIT 1"))


def has_schema(con: duckdb.DuckDBPyConnection) -> bool:
    """Return whether a database holds tables of ClusterUCB."""
    query = "SELECT 1 FROM duckdb_tables() WHERE table_name = 'catalog_schema' AND NOT internal"
    return bool(rows(con, query))
