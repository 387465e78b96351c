-- The catalog as ClusterUCB made it at schema version 3, frozen: nothing here follows today's code.
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

CREATE VIEW latest_selection AS
WITH complete AS (
    SELECT *, max(selection_version) OVER (PARTITION BY target, run_id) AS run_version
    FROM selections WHERE run_complete
)
SELECT * EXCLUDE (run_version) FROM complete
QUALIFY row_number() OVER (
    PARTITION BY target ORDER BY run_version DESC, period DESC, selection_version DESC
) = 1;

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
ON old_rows.sample_id = new_rows.sample_id;
INSERT INTO catalog_schema (schema_version) VALUES (3);

INSERT INTO pools VALUES (1, NULL, '2026-01-02 03:04:05+00', 3, 3, 0, 1, 'digest');
INSERT INTO samples VALUES
    ('a1', 'notes', '[{"role": "user", "content": "What is one?"}]', 12, 1, 'notes.jsonl', 1),
    ('a2', 'notes', '[{"role": "user", "content": "What is two?"}]', 12, 1, 'notes.jsonl', 2),
    ('a3', 'notes', NULL, 14, 1, 'notes.jsonl', 3);
INSERT INTO pool_samples VALUES (1, 'a1'), (1, 'a2'), (1, 'a3');
INSERT INTO quarantine VALUES (1, 'notes', 4, 'bad_json', 'no object', '{');
INSERT INTO exclusions VALUES ('selection', '1', 'a3', 'tokens', 'too_long', 'more than 128 tokens');
INSERT INTO feature_rows VALUES ('space', 'a1', 'shard', 0);
INSERT INTO clusters VALUES ('clustering', 'a1', 4);
INSERT INTO selections
    (selection_version, selection_key, run_id, run_complete, period, created_at, pool_version, target, mode,
     policy, n_selected, budget_samples, gradient_evaluations, gradient_evaluations_reused,
     target_gradient_evaluations, selection_flops, full_selection_flops, cost, estimated_recall, recall_low,
     recall_high, config, config_digest, code_version)
VALUES
    (1, 'key 1', 'run 1', true, 1, '2026-01-03 00:00:00+00', 1, 'gsm8k', 'static', 'linucb', 2, 3, 6, 0, 2, 1.5,
     3.5, '{"draw": {"gradient_evaluations": 6}}', 0.5, 0.25, 0.75, '{"seed": 0}', 'c0ffee', '0.1.0'),
    (2, 'key 2', 'run 2', true, 1, '2026-01-04 00:00:00+00', 1, 'gsm8k', 'static', 'linucb', 1, 3, 6, 0, 2, 1.5,
     3.5, '{}', NULL, NULL, NULL, '{"seed": 1}', 'c0ffee', '0.1.0');
INSERT INTO selection_samples VALUES (1, 1, 'a2', 0.75, 4), (1, 2, 'a1', 0.5, NULL), (2, 1, 'a1', 0.5, NULL);
INSERT INTO pulls VALUES
    (1, 0, 0, 4, 'a2', 0.75, 'draw', 1.5, 0.5, 0.25, 1), (1, 1, 0, 4, 'a1', 0.5, 'audit', NULL, NULL, NULL, 0);
INSERT INTO evaluations (selection_version, run_id, subject, task, metric, value, low, high, n)
VALUES (1, 'run 1', 'selection', 'gsm8k', 'exact_match', 0.5, 0.4, 0.6, 100);
INSERT INTO erasures VALUES ('a3', '2026-01-05 00:00:00+00', 'asked for');
