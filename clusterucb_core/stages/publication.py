"""The catalog's rows of a run: pool version, feature rows, clusters, selection versions, evaluations.

Reads the artifacts of a run; writes the catalog, one short transaction at a time.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from clusterucb_core.artifacts import fingerprint, open_artifact, read_manifest
from clusterucb_core.frozen import Frozen
from clusterucb_core.pool.ingest import ingest_counts
from clusterucb_core.records import ArtifactRef, StageTime
from clusterucb_core.stages.accounting import SelectionCost, run_costs
from clusterucb_core.stages.clusters import read_clustering
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.drawn import (
    draw_exclusions,
    read_certificate,
    read_pulls,
    read_selected,
    read_separation,
)
from clusterucb_core.stages.evaluation import read_results
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.intake import candidate_exclusions, candidate_ids, read_target
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.stages.pairing import compare_with_baselines, random_means
from clusterucb_core.store import (
    ComparisonRow,
    EvaluationRow,
    PoolVersion,
    SelectionDraft,
    open_catalog,
    publish_selections,
    record_artifact_root,
    record_clusters,
    record_comparisons,
    record_evaluations,
    record_exclusions,
    record_feature_rows,
    record_pool,
    record_stages,
)
from clusterucb_core.workspace import Workspace, stage_key


class PeriodDraws(Frozen):
    """The selection of one period: its spec and its artifact."""

    spec: DrawSpec
    draws: ArtifactRef


class RunFacts(Frozen):
    """What every version of a run records of the run; `selection_keys` are by target."""

    run_id: str
    selection_keys: dict[str, str]
    mode: str
    policy: str
    pool_version: int
    config: dict[str, Any]
    config_digest: str
    code_version: str
    mlflow_run_id: str | None = None
    flow_run_id: str | None = None


class Evaluated(Frozen):
    """The evaluation of one subject for one target; only the selection's own belongs to a version."""

    target: str
    subject: str
    evaluation: ArtifactRef


def publish_pool(ref: ArtifactRef, workspace: Workspace) -> PoolVersion:
    """Record an ingested pool; a new version appears only if its content is new."""
    folder = open_artifact(ref)
    with open_catalog(workspace.catalog) as con:
        # an erasure has to find the text that the artifacts of this run will hold
        record_artifact_root(con, str(workspace.artifacts.absolute()))
        return record_pool(
            con,
            samples_parquet=folder / "samples.parquet",
            quarantine_parquet=folder / "quarantine.parquet",
            digest=ingest_counts(ref).digest,
        )


def publish_features(
    spaces: Sequence[FeatureSpace],
    candidates: ArtifactRef,
    clusterings: Sequence[ArtifactRef],
    workspace: Workspace,
) -> int:
    """Record where the features of the candidates lie, what could not be computed, and the clusters.

    Returns:
        The number of feature rows recorded.
    """
    ids = candidate_ids(candidates)
    count = 0
    with open_catalog(workspace.catalog) as con:
        for space in dict.fromkeys(spaces):
            store = open_store(space, workspace)
            all_known = store.known
            known = [sample for sample in ids if sample in all_known]
            rows = pl.DataFrame(
                [(sample, *place) for sample, place in zip(known, store.locations(known), strict=True)],
                schema=["sample_id", "shard", "row_in_shard"],
                orient="row",
            )
            record_feature_rows(con, stage_key(space), rows)
            excluded = [store.excluded[sample] for sample in ids if sample in store.excluded]
            record_exclusions(con, "features", stage_key(space), excluded)
            count += len(known)
        for clustering in clusterings:
            clustered, result = read_clustering(clustering)
            record_clusters(con, clustering.fingerprint, clustered, result.labels)
    return count


def publish_run(periods: Sequence[PeriodDraws], facts: RunFacts, workspace: Workspace) -> list[int]:
    """Write all selections of a run in one transaction, or find those that an earlier one wrote.

    Args:
        periods: those of the first target, then those of the next. A gradient that several need counts as
            computed in the first of them, and as reused in the others.
        facts: what is recorded of the run.
        workspace: where artifacts and catalog lie.

    Returns:
        The selection version of each.
    """
    costs = run_costs([(period.spec, period.draws) for period in periods], workspace, facts.run_id)
    separation = _separation(periods)
    drafts = [
        replace(_draft(period, facts, cost), separation_p=separation.get(period.spec.target.fingerprint))
        for period, cost in zip(periods, costs, strict=True)
    ]
    with open_catalog(workspace.catalog) as con:
        return publish_selections(con, drafts)


def version_key(selection_key: str, spec: DrawSpec) -> str:
    """Return the key under which the version of one period of a target's selections is found again.

    The spec of its draws is named by all that they rest on, the samples of the warmup and of the clustering
    too: a run for one target finds the version of a run for several where no sample leaks into the others.
    """
    return fingerprint(selection_key, stage_key(spec))


def publish_evaluations(
    evaluated: Sequence[Evaluated],
    measures: Sequence[EvaluationRow],
    *,
    version: int,
    run_id: str,
    workspace: Workspace,
) -> None:
    """Record the results of all subjects of a run, and how the selection does against its baselines.

    Args:
        evaluated: the evaluations, of any targets.
        measures: what was measured of subjects otherwise.
        version: of the selection.
        run_id: the run that evaluated.
        workspace: where the catalog lies.
    """
    rows = [
        EvaluationRow(
            selection_version=version if item.subject == "selection" else None,
            run_id=run_id,
            subject=result.subject,
            task=result.task,
            metric=result.metric,
            value=result.value,
            low=result.low,
            high=result.high,
            n=result.n,
            target=item.target,
        )
        for item in evaluated
        for result in read_results(item.evaluation, item.subject)
    ]
    comparisons: list[ComparisonRow] = []
    for target in dict.fromkeys(item.target for item in evaluated):
        found = {item.subject: item.evaluation for item in evaluated if item.target == target}
        of_target = [row for row in measures if row.target == target]
        rows += random_means(found, of_target, target=target, run_id=run_id)
        comparisons += compare_with_baselines(found, target=target, version=version, run_id=run_id)
    with open_catalog(workspace.catalog) as con:
        record_evaluations(con, [*rows, *measures])
        record_comparisons(con, comparisons)


def publish_times(
    stages: Sequence[StageTime], *, run_id: str, flow_run_id: str, workspace: Workspace
) -> None:
    """Record how long the stages of one flow run of a run have taken."""
    with open_catalog(workspace.catalog) as con:
        record_stages(con, run_id, flow_run_id, stages)


def _separation(periods: Sequence[PeriodDraws]) -> dict[str, float]:
    """Return the p-value of the separation check of each target, which its first period made."""
    checked = {p.spec.target.fingerprint: read_separation(p.draws) for p in periods if p.spec.period == 1}
    return {target: found.p for target, found in checked.items() if found is not None}


def _draft(period: PeriodDraws, facts: RunFacts, cost: SelectionCost) -> SelectionDraft:
    spec, draws = period.spec, period.draws
    target = read_target(spec.target).name
    certificate, manifest = read_certificate(draws), read_manifest(draws)
    return SelectionDraft(
        selection_key=version_key(facts.selection_keys[target], spec),
        run_id=facts.run_id,
        period=spec.period,
        pool_version=facts.pool_version,
        target=target,
        mode=facts.mode,
        policy=facts.policy,
        budget_samples=int(manifest["budget_samples"]),
        unspent_samples=int(manifest["unspent_samples"]),
        gradient_evaluations=cost.computed,
        gradient_evaluations_reused=cost.reused,
        target_gradient_evaluations=cost.target_computed,
        selection_flops=cost.flops,
        full_selection_flops=cost.full_flops,
        cost=cost.by_stage
        | {"full": {"gradient_evaluations": cost.full_evaluations, "flops": cost.full_flops}},
        config=facts.config,
        config_digest=facts.config_digest,
        code_version=facts.code_version,
        mlflow_run_id=facts.mlflow_run_id,
        flow_run_id=facts.flow_run_id,
        pulls=read_pulls(draws),
        samples=read_selected(draws),
        exclusions=(*candidate_exclusions(spec.candidates), *draw_exclusions(draws)),
        estimated_recall=None if certificate is None else certificate.recall,
        recall_low=None if certificate is None else certificate.recall_low,
        recall_high=None if certificate is None else certificate.recall_high,
        estimated_captured=None if certificate is None else certificate.captured,
        captured_low=None if certificate is None else certificate.captured_low,
        captured_high=None if certificate is None else certificate.captured_high,
    )
