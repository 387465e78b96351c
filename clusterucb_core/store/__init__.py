"""The catalog: a DuckDB file with the versions of pool and selections. All SQL of the project lies here."""

from clusterucb_core.store.backup_files import catalog_backups
from clusterucb_core.store.backups import backup_catalog, remove_drafts
from clusterucb_core.store.comparisons import ComparisonRow, record_comparisons, selection_comparisons
from clusterucb_core.store.connection import open_catalog
from clusterucb_core.store.differences import ChangeCounts, SelectionDifference, selection_difference
from clusterucb_core.store.drafts import SelectionDraft
from clusterucb_core.store.erasures import ERASED, ErasedRows, erase_rows, erased_ids, record_erasures
from clusterucb_core.store.evaluations import EvaluationRow, record_evaluations, selection_evaluations
from clusterucb_core.store.features import (
    forget_feature_rows,
    record_clusters,
    record_exclusions,
    record_feature_rows,
)
from clusterucb_core.store.places import (
    ExportRecord,
    artifact_roots,
    exports_holding,
    record_artifact_root,
    record_export,
)
from clusterucb_core.store.pools import PoolVersion, pool_messages, pool_sample_ids, pool_version, record_pool
from clusterucb_core.store.profiles import (
    cluster_examples,
    lowest_pulls,
    previous_selection,
    record_stages,
    run_stages,
    selection_clusters,
)
from clusterucb_core.store.publication import find_selections, publish_selections
from clusterucb_core.store.rewriting import rewrite_catalog
from clusterucb_core.store.selections import (
    SelectionSummary,
    diff_selections,
    latest_selection,
    latest_selections,
    list_selections,
    selection_pulls,
    selection_samples,
    selection_sources,
    selection_summary,
)
from clusterucb_core.store.withdrawals import sample_origins, withdraw_samples, withdrawn_ids, withdrawn_in

__all__ = [
    "ChangeCounts",
    "ComparisonRow",
    "ERASED",
    "ErasedRows",
    "EvaluationRow",
    "ExportRecord",
    "PoolVersion",
    "SelectionDraft",
    "SelectionDifference",
    "SelectionSummary",
    "artifact_roots",
    "backup_catalog",
    "catalog_backups",
    "cluster_examples",
    "diff_selections",
    "erase_rows",
    "erased_ids",
    "exports_holding",
    "find_selections",
    "forget_feature_rows",
    "latest_selection",
    "latest_selections",
    "list_selections",
    "lowest_pulls",
    "open_catalog",
    "pool_messages",
    "pool_sample_ids",
    "pool_version",
    "previous_selection",
    "publish_selections",
    "record_artifact_root",
    "record_clusters",
    "record_comparisons",
    "record_erasures",
    "record_evaluations",
    "record_exclusions",
    "record_export",
    "record_feature_rows",
    "record_pool",
    "record_stages",
    "remove_drafts",
    "rewrite_catalog",
    "run_stages",
    "sample_origins",
    "selection_clusters",
    "selection_difference",
    "selection_comparisons",
    "selection_evaluations",
    "selection_pulls",
    "selection_samples",
    "selection_sources",
    "selection_summary",
    "withdraw_samples",
    "withdrawn_ids",
    "withdrawn_in",
]
