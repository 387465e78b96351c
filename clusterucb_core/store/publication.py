"""Publishing the selections of a run: whole, in one transaction, or not at all."""

from collections.abc import Sequence

import duckdb

from clusterucb_core.store.drafts import PULL_COLUMNS, SAMPLE_COLUMNS, SelectionDraft, check_drafts, json_text
from clusterucb_core.store.features import insert_exclusions
from clusterucb_core.store.statements import rows, run, run_on_frame, transaction

_DRAFT_COLUMNS = (
    "selection_key", "run_id", "period", "pool_version", "target", "mode", "policy", "budget_samples",
    "gradient_evaluations", "gradient_evaluations_reused", "target_gradient_evaluations", "selection_flops",
    "full_selection_flops", "config_digest", "code_version", "mlflow_run_id", "flow_run_id",
    "estimated_recall", "recall_low", "recall_high", "unspent_samples",
    "estimated_captured", "captured_low", "captured_high", "separation_p",
)  # fmt: skip


# The numbers of versions that a restoration lost are not given again: they stand in reports and exports.
_NEXT_VERSION = (
    "SELECT greatest((SELECT max(selection_version) FROM selections), "
    "(SELECT max(highest_selection) FROM restorations), 0) + 1"
)


def publish_selections(con: duckdb.DuckDBPyConnection, drafts: Sequence[SelectionDraft]) -> list[int]:
    """Publish all selections of a run in one transaction.

    Args:
        con: a catalog opened for writing.
        drafts: every period of the run and, with several targets, of each of them. New versions are numbered
            in this order, so give the last period of a target last.

    Returns:
        The version of each draft. A key that was published before keeps its version, and nothing is written.

    Raises:
        ValueError: a draft cannot be published (see `check_drafts`); nothing was written.
    """
    with transaction(con):
        check_drafts(con, drafts)
        return [_publish(con, draft) for draft in drafts]


def find_selections(con: duckdb.DuckDBPyConnection, run_id: str) -> list[int]:
    """Return the versions of a complete run by period; none where it was not published."""
    query = (
        "SELECT selection_version FROM selections WHERE run_id = ? AND run_complete "
        "ORDER BY period, selection_version"
    )
    return [version for (version,) in rows(con, query, [run_id])]


def _publish(con: duckdb.DuckDBPyConnection, draft: SelectionDraft) -> int:
    known = rows(
        con, "SELECT selection_version FROM selections WHERE selection_key = ?", [draft.selection_key]
    )
    if known:
        return known[0][0]
    version: int = rows(con, _NEXT_VERSION)[0][0]
    _insert_selection(con, draft, version=version)
    _insert_rows(con, draft, version=version)
    insert_exclusions(con, "selection", str(version), draft.exclusions)
    return version


def _insert_selection(con: duckdb.DuckDBPyConnection, draft: SelectionDraft, *, version: int) -> None:
    values: dict[str, object] = {name: getattr(draft, name) for name in _DRAFT_COLUMNS}
    values |= {
        "selection_version": version,
        "run_complete": True,  # all periods of a run are published by one call
        "n_selected": len(draft.samples),
        "cost": json_text(draft.cost),
        "config": json_text(draft.config),
    }
    names = ", ".join(values)
    marks = ", ".join("?" for _ in values)
    run(con, f"INSERT INTO selections ({names}) VALUES ({marks})", list(values.values()))  # noqa: S608


def _insert_rows(con: duckdb.DuckDBPyConnection, draft: SelectionDraft, *, version: int) -> None:
    if not draft.samples.is_empty():
        run_on_frame(
            con,
            "INSERT INTO selection_samples BY NAME SELECT ? AS selection_version, * FROM incoming",
            draft.samples.select(SAMPLE_COLUMNS).sort("rank"),
            parameters=[version],
        )
    if not draft.pulls.is_empty():
        run_on_frame(
            con,
            "INSERT INTO pulls BY NAME SELECT ? AS selection_version, * FROM incoming",
            draft.pulls.select(PULL_COLUMNS).sort("step"),
            parameters=[version],
        )
