"""Tasks that mirror a run to MLflow: what it took, read and gave, linked both ways.

Where MLflow cannot be reached and the run may go on without it, what it should have received is kept below
`tracking-buffer/` in the state folder and sent with the next run that reaches it.
"""

import base64
import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.comparison import CHART, REPLAYS, TABLE, ComparisonResult
from clusterucb_core.errors import TrackingUnavailable
from clusterucb_core.lineage import run_adapters, run_datasets
from clusterucb_core.masking import masked, masked_address
from clusterucb_core.planning import RunPlan
from clusterucb_core.stages.comparison_summary import SettingSummary
from clusterucb_core.stages.summary import TargetOutcome
from clusterucb_core.tracks import (
    RunFigures,
    figure_metrics,
    run_files,
    run_metrics,
    run_parameters,
    run_tags,
    setting_metrics,
    setting_parameters,
)
from tasks.tracking.buffer import flush_records, keep_record
from tasks.tracking.connection import open_client, tracking_uri, unreachable
from tasks.tracking.records import RUN_TAG, Record, Tracking
from tasks.tracking.sending import open_run, send_record

logger = logging.getLogger(__name__)


@task(name="start tracking")
def start_tracking(plan: RunPlan, flow_run_id: str | None, flow_run_url: str | None) -> Tracking:
    """Open the MLflow run of this run id, or the one that an earlier attempt opened.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, and the run is to fail without it.
    """
    return _start(plan, _tags(plan, flow_run_id, flow_run_url), name=_run_name(plan))


@task(name="start tracking comparison")
def start_comparison_tracking(plan: RunPlan, flow_run_id: str | None, flow_run_url: str | None) -> Tracking:
    """Open the MLflow run of this comparison, or the one that an earlier attempt opened.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, and the run is to fail without it.
    """
    return _start(plan, _tags(plan, flow_run_id, flow_run_url), name=f"compare {_run_name(plan)}")


@task(name="finish tracking")
def finish_tracking(
    plan: RunPlan,
    tracking: Tracking,
    outcomes: Sequence[TargetOutcome],
    figures: RunFigures,
    pages: dict[str, str] | None = None,
) -> dict[str, str]:
    """Send parameters, metrics and configuration, the data, selection, adapter and report of every target.

    Args:
        plan: the run.
        tracking: its MLflow run.
        outcomes: what it came to.
        figures: what it took.
        pages: files by the name that a report has in MLflow.

    Returns:
        Where a browser finds the reports, where MLflow is a server.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, and the run is to fail without it.
    """
    limit = plan.config.evaluate.limit
    reports = {name: Path(path).read_text(encoding="utf-8") for name, path in (pages or {}).items()}
    record = Record(
        tags=tracking.tags | run_tags(outcomes),
        parameters=run_parameters(plan.config),
        metrics=(*run_metrics(outcomes), *figure_metrics(figures)),
        files=run_files(plan.config, outcomes) | reports,
        datasets=tuple(run_datasets(figures.pool, outcomes)),
        adapters=tuple(run_adapters(figures.pool, outcomes, run_id=plan.run_id, limit=limit)),
    )
    if not _finish(plan, tracking, record):
        return {}
    try:
        return _addresses(tracking, list(reports), plan.workspace.home)
    except unreachable() as error:
        uri = tracking_uri(plan.workspace.home)
        logger.warning("MLflow has the reports, and no address for them: %s", masked(str(error), uri))
        return {}


@task(name="finish tracking comparison")
def finish_comparison_tracking(
    plan: RunPlan, tracking: Tracking, result: ComparisonResult, figures: RunFigures
) -> None:
    """Send the table, the replays and the chart, and a nested run for every policy and budget.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, and the run is to fail without it.
    """
    folder = Path(result.folder)
    record = Record(
        tags=tracking.tags,
        parameters=run_parameters(plan.config),
        metrics=tuple(figure_metrics(figures)),
        datasets=tuple(run_datasets(figures.pool, ())),
        files={name: (folder / name).read_text(encoding="utf-8") for name in (TABLE, REPLAYS)},
        images={CHART: base64.b64encode((folder / CHART).read_bytes())},
        name=f"compare {_run_name(plan)}",
        nested=tuple(_setting_record(plan, line) for line in result.settings),
    )
    _finish(plan, tracking, record)


def _run_name(plan: RunPlan) -> str:
    return f"{'+'.join(target.settings.name for target in plan.targets)} {plan.run_id[:8]}"


def _setting_record(plan: RunPlan, line: SettingSummary) -> Record:
    target = f"{line.target} " if len(plan.targets) > 1 else ""
    budget = "" if line.budget_fraction is None else f" {line.budget_fraction:g}"
    return Record(
        tags={RUN_TAG: fingerprint(plan.run_id, line.target, line.policy, line.budget_fraction)},
        parameters=setting_parameters(line),
        metrics=tuple(setting_metrics(line)),
        files={},
        name=f"{target}{line.policy}{budget}",
    )


def _tags(plan: RunPlan, flow_run_id: str | None, flow_run_url: str | None) -> dict[str, str]:
    return {
        RUN_TAG: plan.run_id,
        "prefect.flow_run_id": flow_run_id or "",
        "prefect.flow_run_url": flow_run_url or "",
    }


def _start(plan: RunPlan, tags: dict[str, str], *, name: str) -> Tracking:
    try:
        run_id = open_run(tags, name=name, home=plan.workspace.home)
        _link(run_id, plan.workspace.home)
    except unreachable() as error:
        return _without(plan, tags, error)
    return Tracking(mlflow_run_id=run_id, tags=tags)


def _finish(plan: RunPlan, tracking: Tracking, record: Record) -> bool:
    """Send a record, and those that wait; return whether it is sent, under the MLflow run that was opened."""
    home = plan.workspace.home
    if tracking.mlflow_run_id is None:
        keep_record(record, plan.run_id, home)
        _flush(home)  # MLflow may have come back
        return False
    try:
        send_record(tracking.mlflow_run_id, record, home)
    except unreachable() as error:
        _without(plan, tracking.tags, error)
        keep_record(record, plan.run_id, home)
        return False
    _flush(home)
    return True


def _flush(home: str) -> None:
    try:
        flush_records(home)
    except unreachable() as error:
        uri = tracking_uri(home)
        logger.warning(
            "MLflow at %s did not take what waits in tracking-buffer/ (%s); a later run sends it",
            masked_address(uri),
            masked(str(error), uri),
        )


def _without(plan: RunPlan, tags: dict[str, str], error: Exception) -> Tracking:
    uri = tracking_uri(plan.workspace.home)
    seen = f"MLflow at {masked_address(uri)} did not take this run ({masked(str(error), uri)})"
    if plan.execution.when_tracking_is_down == "fail":
        # no cause: its text may name the address with its password, and Prefect keeps what is logged
        raise TrackingUnavailable(
            f"{seen}; start it or correct MLFLOW_TRACKING_URI, or set execution.when_tracking_is_down=buffer "
            "to go on and send later what it should keep"
        ) from None
    logger.warning("%s; what it should keep waits in tracking-buffer/", seen)
    return Tracking(mlflow_run_id=None, tags=tags)


def _addresses(tracking: Tracking, names: Sequence[str], home: str) -> dict[str, str]:
    """Return where a browser finds files of a run; nothing where MLflow is a database or was down."""
    if tracking.mlflow_run_id is None or not names:
        return {}
    address, page = _page_of(tracking.mlflow_run_id, home)
    return {name: f"{address}/{page}/artifacts/{name}" for name in names if address.startswith("http")}


def _page_of(run_id: str, home: str) -> tuple[str, str]:
    """Return where MLflow is, without its password, and the page of a run there."""
    address = masked_address(tracking_uri(home)).rstrip("/")
    experiment = open_client(home).get_run(run_id).info.experiment_id
    return address, f"#/experiments/{experiment}/runs/{run_id}"


def _link(run_id: str, home: str) -> None:
    address, page = _page_of(run_id, home)
    if address.startswith("http"):
        create_link_artifact(key="mlflow-run", link=f"{address}/{page}", link_text=f"MLflow run {run_id}")
        return
    # a database is no address that a browser can open
    text = (
        f"MLflow run `{run_id}`: start `mlflow ui --backend-store-uri {address}`, then open `/{page}` there"
    )
    create_markdown_artifact(text, key="mlflow-run")
