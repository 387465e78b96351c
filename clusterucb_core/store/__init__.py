"""The catalog: a DuckDB file with the versions of pool and selections. All SQL of the project lies here."""

from clusterucb_core.store.connection import open_catalog
from clusterucb_core.store.differences import ChangeCounts, SelectionDifference, selection_difference
from clusterucb_core.store.drafts import SelectionDraft
from clusterucb_core.store.evaluations import EvaluationRow, record_evaluations, selection_evaluations
from clusterucb_core.store.features import (
    forget_feature_rows,
    record_clusters,
    record_exclusions,
    record_feature_rows,
)
from clusterucb_core.store.pools import PoolVersion, pool_messages, pool_sample_ids, pool_version, record_pool
from clusterucb_core.store.publication import find_selections, publish_selections
from clusterucb_core.store.selections import (
    SelectionSummary,
    diff_selections,
    latest_selections,
    list_selections,
    selection_pulls,
    selection_samples,
    selection_sources,
    selection_summary,
)

__all__ = [
    "ChangeCounts",
    "EvaluationRow",
    "PoolVersion",
    "SelectionDraft",
    "SelectionDifference",
    "SelectionSummary",
    "diff_selections",
    "find_selections",
    "forget_feature_rows",
    "latest_selections",
    "list_selections",
    "open_catalog",
    "pool_messages",
    "pool_sample_ids",
    "pool_version",
    "publish_selections",
    "record_clusters",
    "record_evaluations",
    "record_exclusions",
    "record_feature_rows",
    "record_pool",
    "selection_difference",
    "selection_evaluations",
    "selection_pulls",
    "selection_samples",
    "selection_sources",
    "selection_summary",
]
