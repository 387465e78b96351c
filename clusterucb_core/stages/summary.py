"""What a run came to: for each subject its sources, influence, loss and cost, and what this call computed.

Reads artifacts only.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import Field

from clusterucb_core.artifacts import MANIFEST, artifact_file
from clusterucb_core.cost import CostTable
from clusterucb_core.frozen import Frozen
from clusterucb_core.influence import Judgement, judge
from clusterucb_core.records import ArtifactRef
from clusterucb_core.separation import chance_warning
from clusterucb_core.stages.accounting import NeededCost, feature_spaces, needed_cost
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.drawn import read_certificate, read_separation
from clusterucb_core.stages.evaluation import read_results
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.stages.models import CheckpointRef, FeatureSpace
from clusterucb_core.stages.publication import PeriodDraws
from clusterucb_core.stages.scores import open_book, read_target_gradients, total_scores, usable_rows
from clusterucb_core.stages.training import TrainingSpec, selected_ids
from clusterucb_core.store import EvaluationRow
from clusterucb_core.workspace import Workspace


class Trajectory(Frozen):
    """The selections of one subject, period by period, and the adapter that training on them gave.

    `warmup` is the training before the first gradients; None for a subject that takes none. Without training
    `checkpoint` is None.
    """

    subject: str
    periods: tuple[PeriodDraws, ...]
    checkpoint: CheckpointRef | None
    trainings: tuple[ArtifactRef, ...]
    warmup: TrainingSpec | None = None


class SubjectSummary(Frozen):
    """One line of a run's result; None where it was not measured.

    What is estimated comes from the audit of the last selection, with the ends of its 95 % interval.
    `gradient_evaluations`, `selection_flops` and `cost`, which is both by stage, are what its selections rest
    on, whoever computed it; `full_selection_flops` is what selections without a budget would take.
    """

    subject: str
    n_selected: int
    sources: dict[str, int]
    captured_influence: float | None
    recall: float | None
    loss: float | None
    loss_low: float | None
    loss_high: float | None
    gradient_evaluations: int | None
    selection_flops: float | None = None
    full_selection_flops: float | None = None
    cost: CostTable = Field(default_factory=dict)
    estimated_captured: float | None = None
    captured_low: float | None = None
    captured_high: float | None = None
    estimated_recall: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None
    separation_p: float | None = None


class TargetOutcome(Frozen):
    """What a run came to for one of its targets.

    `versions` are those of `chosen`, period by period; `subjects` it and its baselines, `evaluations` those
    of them that were measured. Without `test_tokens` its loss is compared with that of no other run.
    """

    target: str
    chosen: Trajectory
    versions: tuple[int, ...]
    subjects: tuple[SubjectSummary, ...]
    evaluations: tuple[ArtifactRef, ...] = ()
    test_tokens: ArtifactRef | None = None


class Work(Frozen):
    """What one call of the pipeline computed itself."""

    gradient_evaluations: int
    trainings: int


def summarise(
    trajectory: Trajectory,
    evaluation: ArtifactRef | None,
    *,
    pool: ArtifactRef,
    oracle_spaces: Sequence[DrawSpec],
    workspace: Workspace,
) -> SubjectSummary:
    """Return the summary of one subject.

    Args:
        trajectory: its selections; none for the base model.
        evaluation: its evaluation; None where nothing was trained.
        pool: the ingested pool, for the sources of the selected samples.
        oracle_spaces: draws whose checkpoints measure the last selection; empty means its own.
        workspace: where artifacts lie.
    """
    ids = selected_ids(trajectory.periods[-1].draws) if trajectory.periods else []
    cost = _cost(trajectory)
    judgement = _judgement(trajectory, oracle_spaces, workspace)
    results = [] if evaluation is None else read_results(evaluation, trajectory.subject)
    losses = [result for result in results if result.metric == "loss"]
    return SubjectSummary(
        subject=trajectory.subject,
        n_selected=len(ids),
        sources=_sources(pool, ids),
        captured_influence=None if judgement is None else judgement.captured_influence,
        recall=None if judgement is None else judgement.recall,
        loss=losses[0].value if losses else None,
        loss_low=losses[0].low if losses else None,
        loss_high=losses[0].high if losses else None,
        gradient_evaluations=None if cost is None else cost.evaluations,
        selection_flops=None if cost is None else cost.flops,
        full_selection_flops=None if cost is None else cost.full_flops,
        cost={} if cost is None else cost.by_stage,
        **_estimates(trajectory),
    )


def measures(summary: SubjectSummary, *, target: str, version: int, run_id: str) -> list[EvaluationRow]:
    """Return the influence measures of a subject as rows of the table `evaluations`."""
    values = {"captured_influence": summary.captured_influence, "recall": summary.recall}
    return [
        EvaluationRow(
            selection_version=version if summary.subject == "selection" else None,
            run_id=run_id,
            subject=summary.subject,
            task=target,
            metric=metric,
            value=value,
            low=None,
            high=None,
            n=summary.n_selected,
            target=target,
        )
        for metric, value in values.items()
        if value is not None
    ]


def spaces_of(trajectories: Sequence[Trajectory]) -> list[FeatureSpace]:
    """Return the spaces that hold features for some trajectories, each once."""
    periods = (period for item in trajectories for period in item.periods)
    return list(dict.fromkeys(space for period in periods for space in feature_spaces(period.spec)))


def clusterings_of(trajectories: Sequence[Trajectory]) -> list[ArtifactRef]:
    """Return the clusterings that some trajectories draw from, each once."""
    found = [period.spec.clustering for item in trajectories for period in item.periods]
    return list({ref.fingerprint: ref for ref in found if ref is not None}.values())


def trainings_of(trajectories: Sequence[Trajectory]) -> list[ArtifactRef]:
    """Return the trainings of some trajectories."""
    return [ref for item in trajectories for ref in item.trainings]


def separation_warning(summary: SubjectSummary, target: str) -> str | None:
    """Return the warning of a target that does not separate the pool; None where it does, or unchecked."""
    warning = None if summary.separation_p is None else chance_warning(summary.separation_p)
    return None if warning is None else f"target {target!r}: {warning}"


def pool_sources(pool: ArtifactRef) -> dict[str, int]:
    """Return how many samples of an ingested pool each source gave."""
    sources = pl.read_parquet(artifact_file(pool, "samples.parquet"), columns=["source"])["source"]
    return dict(sorted(Counter(sources).items()))


def work_since(
    started_at: float, spaces: Sequence[FeatureSpace], trainings: Sequence[ArtifactRef], workspace: Workspace
) -> Work:
    """Return what was computed since a time (seconds since the epoch), by the age of what lies on disk."""
    evaluations = 0
    for space in dict.fromkeys(space for space in spaces if space.has_gradients):
        store = open_store(space, workspace)
        fresh = [shard for shard in store.shards.values() if _is_newer(shard.folder, started_at)]
        evaluations += sum(len(shard.places) for shard in fresh)
    trained = {ref.fingerprint for ref in trainings if _is_newer(Path(ref.path), started_at)}
    return Work(gradient_evaluations=evaluations, trainings=len(trained))


def _is_newer(folder: Path, started_at: float) -> bool:
    return (folder / MANIFEST).stat().st_mtime >= started_at


def _sources(pool: ArtifactRef, ids: Sequence[str]) -> dict[str, int]:
    frame = pl.read_parquet(artifact_file(pool, "samples.parquet"), columns=["sample_id", "source"])
    return dict(sorted(Counter(frame.filter(pl.col("sample_id").is_in(ids))["source"]).items()))


def _cost(trajectory: Trajectory) -> NeededCost | None:
    selections = [(period.spec, period.draws) for period in trajectory.periods]
    return needed_cost(selections) if selections else None


def _estimates(trajectory: Trajectory) -> dict[str, float | None]:
    """Return what the audit of the last selection and the check of the first say, as fields of a summary."""
    if not trajectory.periods:
        return {}
    certificate = read_certificate(trajectory.periods[-1].draws)
    separation = read_separation(trajectory.periods[0].draws)
    fields: dict[str, float | None] = {"separation_p": None if separation is None else separation.p}
    if certificate is None:
        return fields
    return fields | {
        "estimated_captured": certificate.captured,
        "captured_low": certificate.captured_low,
        "captured_high": certificate.captured_high,
        "estimated_recall": certificate.recall,
        "recall_low": certificate.recall_low,
        "recall_high": certificate.recall_high,
    }


def _judgement(
    trajectory: Trajectory, oracle_spaces: Sequence[DrawSpec], workspace: Workspace
) -> Judgement | None:
    """Return what the last selection holds of the true one, where all candidates have known gradients."""
    if not trajectory.periods:
        return None
    last = trajectory.periods[-1]
    measured = oracle_spaces[0] if oracle_spaces else last.spec
    if not measured.spaces:
        return None
    aggregate = measured.settings.aggregate
    target = read_target_gradients(measured.target, measured.spaces, workspace, aggregate=aggregate)
    ids = candidate_ids(measured.candidates)
    book = open_book(measured.spaces, measured.weights, target, sample_ids=ids, workspace=workspace)
    rows = usable_rows(book)
    scores = total_scores(book, rows)
    if np.isnan(scores).any():
        return None
    place = {ids[row]: position for position, row in enumerate(rows)}
    chosen = [place[sample] for sample in selected_ids(last.draws) if sample in place]
    if len(chosen) < len(selected_ids(last.draws)):
        return (
            None  # a random selection may hold a sample without a gradient: there is nothing to compare it by
        )
    return judge(scores, np.array(chosen), aggregate=aggregate)
