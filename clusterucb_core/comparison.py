"""The result of a comparison, kept so that a repeat with nothing changed finds it: table, chart, replays.

Reads and writes the artifact `comparisons`.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import ValidationError

from clusterucb_core.artifacts import (
    artifact_folder,
    discard_artifact,
    find_artifact,
    fingerprint,
    new_artifact,
)
from clusterucb_core.charts import comparison_chart
from clusterucb_core.frozen import Frozen
from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.comparison import CompareSpec, compared_settings, read_replays
from clusterucb_core.stages.comparison_summary import SettingSummary
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.publication import PeriodDraws
from clusterucb_core.stages.sides import ModelTokens, context_source
from clusterucb_core.stages.summary import Work

logger = logging.getLogger(__name__)

STAGE = "comparisons"
# raised whenever the files below change
VERSION = 1
RESULT, TABLE, CHART, REPLAYS = "result.json", "comparison.csv", "comparison.png", "replays.csv"


class ComparisonResult(Frozen):
    """What a comparison came to.

    Attributes:
        run_id: fingerprint of everything that determines it.
        targets: names of the targets, each with lines of its own in `settings`.
        mode: `static` or `dynamic`.
        n_samples: samples of the pool that it was made on.
        periods: the selections that were replayed.
        seeds: repetitions of each setting.
        audit_fraction: share of the pool that is audited within every budget.
        settings: what every policy at every budget came to.
        folder: where the table, the chart and the replays lie.
        work: what the call that returned this computed itself.
        mlflow_run_id: the MLflow run, None where MLflow could not be reached.
        seconds: wall time of the call.
    """

    run_id: str
    targets: tuple[str, ...]
    mode: Literal["static", "dynamic"]
    n_samples: int
    periods: tuple[int, ...]
    seeds: int
    audit_fraction: float
    settings: tuple[SettingSummary, ...]
    folder: str
    work: Work
    mlflow_run_id: str | None
    seconds: float


def comparison_spec(
    plan: RunPlan, oracle: Sequence[PeriodDraws], validation_tokens: ArtifactRef
) -> CompareSpec:
    """Return what is replayed on the selections of full gradients, period by period.

    In dynamic mode every bandit policy makes the first selection with a full pass, so that one is shared.
    """
    shared = 1 if plan.config.mode == "dynamic" else 0
    specs = tuple(_with_context(plan, period.spec, validation_tokens) for period in oracle)
    return CompareSpec(
        shared=specs[:shared],
        periods=specs[shared:],
        settings=compared_settings(plan.config.compare),
        seeds=plan.config.compare.seeds,
    )


def _with_context(plan: RunPlan, spec: DrawSpec, validation_tokens: ArtifactRef) -> DrawSpec:
    """Return the selection with the side information that its gradients give."""
    assert spec.first_space is not None, "full selection has a first checkpoint"
    own = ModelTokens(model=plan.model, pool=spec.tokens, validation=validation_tokens)
    counted = list(zip(spec.spaces, spec.weights, strict=True))
    context = context_source("gradient", spec.first_space, counted=counted, own=own, proxy=None)
    return spec.model_copy(update={"context": context})


def keep_comparison(
    plan: RunPlan, result: ComparisonResult, replays: Sequence[ArtifactRef]
) -> ComparisonResult:
    """Write the table, the chart and the replays of a comparison, and return its result as lying there.

    Args:
        plan: the comparison.
        result: what it came to.
        replays: the artifact `comparison` of every target.
    """
    root = plan.workspace.artifacts
    if finished_comparison(plan) is None:
        discard_artifact(root, STAGE, _key(plan))
    seeds = f"{result.seeds} seed" + ("" if result.seeds == 1 else "s")
    title = f"{', '.join(result.targets)}: {result.n_samples:,} samples, {result.mode} mode, {seeds}"
    with new_artifact(root, STAGE, _key(plan), {}) as folder:
        comparison_table(result.settings).write_csv(folder / TABLE)
        pl.concat([read_replays(ref) for ref in replays]).write_csv(folder / REPLAYS)
        comparison_chart(folder / CHART, result.settings, title=title)
        (folder / RESULT).write_text(result.model_dump_json(indent=1), encoding="utf-8")
    return result.model_copy(update={"folder": str(artifact_folder(root, STAGE, _key(plan)))})


def finished_comparison(plan: RunPlan) -> ComparisonResult | None:
    """Return the result of an earlier comparison of the same inputs and settings, with no work of its own.

    Returns:
        None where there is none that this code can read.
    """
    ref = find_artifact(plan.workspace.artifacts, STAGE, _key(plan))
    if ref is None:
        return None
    try:
        result = ComparisonResult.model_validate_json((Path(ref.path) / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        logger.warning("the kept comparison %s cannot be read and is made anew: %s", ref.path, error)
        return None
    nothing = Work(gradient_evaluations=0, trainings=0)
    return result.model_copy(update={"folder": ref.path, "work": nothing, "seconds": 0.0})


def comparison_table(settings: Sequence[SettingSummary]) -> pl.DataFrame:
    """Return one row for every setting; the means of the periods stand in one column, parted by spaces."""
    rows = [
        line.model_dump() | {"captured_by_period": " ".join(f"{x:.4f}" for x in line.captured_by_period)}
        for line in settings
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def kept_replays(result: ComparisonResult) -> pl.DataFrame:
    """Return one row for every setting, seed and period of a comparison."""
    return pl.read_csv(Path(result.folder) / REPLAYS)


def copy_files(result: ComparisonResult, folder: Path) -> ComparisonResult:
    """Copy the table, the chart and the replays into a folder, and return the result as lying there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TABLE, CHART, REPLAYS):
        shutil.copyfile(Path(result.folder) / name, folder / name)
    return result.model_copy(update={"folder": str(folder)})


def _key(plan: RunPlan) -> str:
    return fingerprint(VERSION, plan.run_id)
