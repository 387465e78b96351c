"""Progress of mapped tasks, tables and links, as Prefect artifacts."""

import logging
import time
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.futures import PrefectFuture, as_completed

from clusterucb_core.pacing import Pace, advance, pace_text
from clusterucb_core.reselection import TargetReselection
from clusterucb_core.stages.comparison_summary import SettingSummary
from clusterucb_core.stages.summary import TargetOutcome
from tasks.clock import CACHED, add_time

logger = logging.getLogger(__name__)


def show_progress(name: str, futures: Sequence[PrefectFuture[Any]]) -> None:
    """Wait for futures, and show how many are done, their rate and the time left; a failure is raised.

    Args:
        name: what is computed; letters, digits and dashes.
        futures: the futures of a mapped task.
    """
    description = f"{name}: {len(futures)} shards"
    # outside an event loop the call returns the id itself
    artifact = cast(
        "UUID", create_progress_artifact(progress=0.0, key=f"progress-{name}", description=description)
    )
    pace, cached = Pace(logger, name, "shards", len(futures)), 0
    for future in as_completed(list(futures)):
        future.result()
        cached += future.state.name == CACHED
        advance(pace)
        update_progress_artifact(artifact_id=artifact, progress=100.0 * pace.done / len(futures))
    seconds = time.monotonic() - pace.began_at
    logger.info("%s: %s", name, pace_text(pace.done, len(futures), unit="shards", seconds=seconds))
    add_time(name, calls=len(futures), cached=cached, seconds=seconds)


def show_subjects(outcomes: Sequence[TargetOutcome], run_id: str) -> None:
    """Leave the comparison of each target's subjects as a table artifact."""
    rows = [
        {"target": outcome.target, **subject.model_dump(mode="json", exclude={"sources"})}
        for outcome in outcomes
        for subject in outcome.subjects
    ]
    create_table_artifact(key="selection-result", table=rows, description=f"Subjects of run {run_id}")


def show_differences(targets: Sequence[TargetReselection], run_id: str) -> None:
    """Leave what a re-selection changed, in total, by source and by cluster, as a table artifact."""
    found = [(item.target, item.difference) for item in targets if item.difference is not None]
    rows = [
        {"target": target, "from": change.a, "to": change.b, "part": part, **counts.model_dump(mode="json")}
        for target, change in found
        for part, of_part in change.parts.items()
        for counts in of_part
    ]
    create_table_artifact(key="selection-difference", table=rows, description=f"What run {run_id} changed")


def show_reports(outcomes: Sequence[TargetOutcome], addresses: dict[str, str]) -> None:
    """Link the flow run to its reports, and say how each is written with the texts of samples."""
    links = [f"- [{name}]({address}), without the texts of samples" for name, address in addresses.items()]
    commands = [
        f"- {outcome.target}: `clusterucb report {outcome.versions[-1]}` writes the page with the texts"
        for outcome in outcomes
    ]
    create_markdown_artifact("\n".join([*links, *commands]), key="report")


def show_settings(settings: Sequence[SettingSummary], run_id: str) -> None:
    """Leave the comparison of policies and budgets as a table artifact."""
    rows = [line.model_dump(mode="json") for line in settings]
    create_table_artifact(key="comparison", table=rows, description=f"Policies and budgets of {run_id}")
