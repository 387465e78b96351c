"""What a run will take, estimated before a model loads: gradient evaluations, disk, memory.

Reads the pool (from its artifact, else through a temporary folder), the target and the model's tokenizer;
leaves nothing behind. The figures are upper bounds where exclusions or repeats in the store lower them.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clusterucb_core.bandit.pulls import cold_start_counts
from clusterucb_core.clustering import cluster_count
from clusterucb_core.config import RunConfig
from clusterucb_core.errors import BudgetError, InvalidConfig, InvalidTarget
from clusterucb_core.features.forward import OUTER_WIDTH
from clusterucb_core.features.projections import resolve_projection
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.chat import Tokenized, tokenize_batch
from clusterucb_core.lm.loading import load_config
from clusterucb_core.planning import RunPlan
from clusterucb_core.pool.ingest import IngestCounts, ingest_counts
from clusterucb_core.records import Exclusion, Target, TargetRow
from clusterucb_core.selection import cold_start_of, is_bandit, needs_gradient_pass, needs_proxy, share_of
from clusterucb_core.stages.comparison import compared_settings, repetitions
from clusterucb_core.stages.evaluable import check_tasks
from clusterucb_core.stages.intake import run_ingest
from clusterucb_core.stages.models import open_chat
from clusterucb_core.stages.sides import context_kind
from clusterucb_core.targets.catalog import load_target
from clusterucb_core.workspace import Workspace, finished

FEATURE_BYTES = 2  # float16
FLOAT_BYTES = 4
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Estimate(Frozen):
    """What a run will take; `n_samples` is the part of the pool that `max_samples` leaves.

    Target rows and gradient evaluations are those of all targets together, the other counts are for each.
    `forward_passes` counts, by stage, the samples that go through a forward pass alone.
    """

    pool: IngestCounts
    n_pool: int
    n_samples: int
    n_targets: int
    n_validation: int
    n_test: int
    n_selected: int
    budget_samples: int
    n_clusters: int
    cold_start_samples: int
    n_checkpoints: int
    feature_dim: int
    gradient_evaluations: dict[str, int]
    forward_passes: dict[str, int]
    full_gradient_evaluations: int
    disk_bytes: dict[str, int]
    memory_bytes: dict[str, int]
    warnings: tuple[str, ...]


class ComparisonEstimate(Frozen):
    """What a comparison will take: full gradients once, and each setting's own draws where it fine-tunes."""

    n_samples: int
    n_checkpoints: int
    gradient_evaluations: int
    n_replays: int
    n_selections: int
    selection_evaluations: int


class _Counts(Frozen):
    """The counts from which the rest follows."""

    n_samples: int
    n_targets: int
    n_validation: int
    n_selected: int
    budget_samples: int
    n_clusters: int
    cold_start_samples: int
    n_checkpoints: int


def estimate_run(plan: RunPlan) -> Estimate:
    """Check what the files say about a plan, and estimate what it takes.

    Args:
        plan: a run that has not started.

    Raises:
        BudgetError: nothing would be selected, or the budget is below the cold start.
        InvalidConfig: there are more clusters than samples, the chat template cannot be used, or a task to
            evaluate is unknown.
        InvalidPool: the pool has no sample or no known shape.
        InvalidTarget: a validation row cannot be used, or there are no test rows for a task.
        NoSandbox: code of the model is to be run and cannot be isolated on this machine.
    """
    pool = _pool_counts(plan)
    targets = [load_target(spec.settings, Path(spec.base_folder)) for spec in plan.targets]
    check_tasks(plan.config.evaluate, targets)
    odd_rows = tuple(warning for target in targets for warning in _row_warnings(plan, target))
    counts = _counts(plan.config, pool.n_samples, [len(target.validation) for target in targets])
    dim = _feature_dim(plan)
    disk = _disk_bytes(plan, counts, dim)
    return Estimate(
        pool=pool,
        n_pool=pool.n_samples,
        n_test=sum(len(target.test) for target in targets),
        feature_dim=dim,
        gradient_evaluations=_gradient_evaluations(plan.config, counts),
        forward_passes=_forward_passes(plan, counts),
        full_gradient_evaluations=_full_evaluations(plan.config, counts),
        disk_bytes=disk,
        memory_bytes=_memory_bytes(plan, counts, dim),
        warnings=(*odd_rows, *_warnings(plan, counts, targets, disk_bytes=sum(disk.values()))),
        **counts.model_dump(),
    )


def estimate_comparison(plan: RunPlan) -> ComparisonEstimate:
    """Estimate what a comparison takes, at most; `plan` is a plan of one.

    `n_selections` counts the selections and fine-tunings made for real, `selection_evaluations` the gradients
    that those take beyond the oracle's: none in static mode, where all share its checkpoints.
    """
    config, n = plan.config, _counted_samples(plan.config, _pool_counts(plan).n_samples)
    checkpoints = _n_checkpoints(config)
    every = [(s, len(repetitions(s, config.compare.seeds))) for s in compared_settings(config.compare)]
    drawn = sum(share_of(s.budget_fraction or 0.0, n) * repeats for s, repeats in every)
    targets, repeats = len(plan.targets), sum(repeats for _, repeats in every)
    trajectories = 1 if config.mode == "static" else targets
    replayed = checkpoints - 1 if config.mode == "dynamic" else 1
    trains = config.compare.finetune
    return ComparisonEstimate(
        n_samples=n,
        n_checkpoints=checkpoints,
        gradient_evaluations=n * (1 + trajectories * (checkpoints - 1)),
        n_replays=targets * repeats * replayed,
        n_selections=targets * repeats if trains else 0,
        selection_evaluations=targets * drawn * replayed if trains and config.mode == "dynamic" else 0,
    )


def _counted_samples(config: RunConfig, n_pool: int) -> int:
    limit = config.pool.max_samples
    return n_pool if limit is None else min(n_pool, limit)


def _n_checkpoints(config: RunConfig) -> int:
    return config.warmup.epochs if config.mode == "static" else config.finetune.epochs


def _pool_counts(plan: RunPlan) -> IngestCounts:
    known = finished(plan.ingest, plan.workspace)
    if known is not None:
        return ingest_counts(known)
    with tempfile.TemporaryDirectory(prefix="clusterucb-check-") as folder:
        return ingest_counts(run_ingest(plan.ingest, Workspace(home=folder)))


def _row_warnings(plan: RunPlan, target: Target) -> Iterator[str]:
    """Yield what is odd about target rows; a validation row without a gradient is an error."""
    owner = f" of target {target.name!r}" if len(plan.targets) > 1 else ""
    for split, rows in (("validation", target.validation), ("test", target.test)):
        outcomes = _tokenized(plan, rows)
        lost = [(i, o) for i, o in enumerate(outcomes, start=1) if isinstance(o, Exclusion)]
        cut = sum(isinstance(outcome, Tokenized) and outcome.truncated for outcome in outcomes)
        if lost and split == "validation":
            number, why = lost[0]
            raise InvalidTarget(
                f"validation row {number} of target {target.name!r} has nothing to take a gradient of: "
                f"{why.reason} ({why.detail}); mend or remove the row"
            )
        if lost:
            number, why = lost[0]
            yield (
                f"{len(lost)} of {len(rows)} {split} rows{owner} have no loss, "
                f"first row {number} ({why.reason})"
            )
        if cut:
            limit = plan.model.settings.max_length
            yield (
                f"{cut} of {len(rows)} {split} rows{owner} are cut to model.max_length={limit} tokens; "
                "raise it, or shorten the prompts"
            )


def _tokenized(plan: RunPlan, rows: Sequence[TargetRow]) -> list[Tokenized | Exclusion]:
    conversations = [(row.row_id, row.messages) for row in rows]
    return tokenize_batch(open_chat(plan.model), conversations, max_length=plan.model.settings.max_length)


def _counts(config: RunConfig, n_pool: int, n_validation: Sequence[int]) -> _Counts:
    n = _counted_samples(config, n_pool)
    n_selected = share_of(config.selection.top_fraction, n)
    if n_selected < 1:
        raise BudgetError(
            f"selection.top_fraction={config.selection.top_fraction} of {n} samples selects none; "
            "raise it or give a larger pool"
        )
    k, budget, cold_start = _bandit_counts(config, n)
    return _Counts(
        n_samples=n,
        n_targets=len(n_validation),
        n_validation=sum(n_validation),
        n_selected=n_selected,
        budget_samples=budget,
        n_clusters=k,
        cold_start_samples=cold_start,
        n_checkpoints=_n_checkpoints(config),
    )


def _bandit_counts(config: RunConfig, n: int) -> tuple[int, int, int]:
    """Return clusters, budget and cold start, as if all clusters were of one size."""
    settings = config.selection
    if not is_bandit(settings.policy):
        return 0, 0, 0
    try:
        k = cluster_count(config.clusters.k, n)
    except ValueError as error:
        raise InvalidConfig(f"clusters.k={config.clusters.k} does not fit {n} samples: {error}") from error
    sizes = np.array([n // k + (cluster < n % k) for cluster in range(k)])
    cold_start = int(cold_start_counts(sizes, cold_start_of(settings)).sum())
    budget, audit = share_of(settings.budget_fraction, n), share_of(settings.audit_fraction, n)
    if budget - audit < max(1, cold_start):
        raise BudgetError(
            f"the budget of {budget} samples (selection.budget_fraction={settings.budget_fraction} of {n}), "
            f"less an audit of {audit}, is below the cold start of about {cold_start} samples "
            f"({k} clusters, cold_start_fraction={settings.cold_start_fraction}); "
            "raise the budget, or lower the cold start or clusters.k"
        )
    return k, budget, cold_start


def _feature_dim(plan: RunPlan) -> int:
    settings, n_parameters = plan.config.features, plan.model.n_lora_parameters
    projection = resolve_projection(
        settings.projection, dim=settings.projection_dim, n_parameters=n_parameters, seed=plan.config.seed
    )
    return n_parameters if projection is None else settings.projection_dim


def _full_evaluations(config: RunConfig, counts: _Counts) -> int:
    """Return what full selection for all targets takes; in dynamic mode they share the first checkpoint."""
    trajectories = 1 if config.mode == "static" else counts.n_targets
    return counts.n_samples * (1 + trajectories * (counts.n_checkpoints - 1))


def _gradient_evaluations(config: RunConfig, counts: _Counts) -> dict[str, int]:
    """Return samples x checkpoints by stage; what one stage or target computes, the next one reuses."""
    everything, later = _full_evaluations(config, counts), counts.n_checkpoints - 1
    parts: dict[str, int] = {}
    passes = 0
    whole = needs_gradient_pass(config.selection, config.clusters)
    # targets may draw the same samples, and in dynamic mode only at the first checkpoint
    drawn = counts.n_targets * counts.budget_samples
    at_first = min(drawn, counts.n_samples)
    after = later * (at_first if config.mode == "static" else drawn)
    if is_bandit(config.selection.policy):
        if whole:
            parts["clustering"] = counts.n_samples
        parts["selection"] = after if whole else at_first + after
        passes = counts.n_checkpoints
    elif config.selection.policy == "full":
        parts["selection"] = everything
        passes = counts.n_checkpoints
    if "full" in config.evaluate.baselines and config.selection.policy != "full":
        # static: the same checkpoints; dynamic: only the warmup's is the same
        first = counts.n_samples if whole else at_first
        shared = sum(parts.values()) if config.mode == "static" else first
        parts["baseline full"] = everything - shared
        passes = (
            max(passes, counts.n_checkpoints) if config.mode == "static" or not passes else passes + later
        )
    return parts | {"target": counts.n_validation * passes}


def _forward_passes(plan: RunPlan, counts: _Counts) -> dict[str, int]:
    """Return the samples that go through a forward pass alone, by stage; one pass serves all that read it."""
    config = plan.config
    kind = context_kind(config.selection, config.clusters)
    by_samples = config.selection.policy == "linucb"
    clustered = kind if by_samples else config.clusters.features
    if config.selection.policy == "random" or clustered == "gradient":
        return {}
    target = {} if kind is None else {"target": counts.n_validation}
    return {"clustering": counts.n_samples, **target}


def _forward_entries(plan: RunPlan, counts: _Counts) -> int:
    """Return how many numbers are kept of forward passes, those of the first gradients included."""
    model = plan.proxy or plan.model
    hidden = int(load_config(model.settings).get_text_config().hidden_size)
    by_head = plan.config.selection.policy == "linucb" and plan.config.selection.context == "output_error"
    alone = sum(_forward_passes(plan, counts).values())
    beside = 0
    if not alone and plan.config.selection.policy != "random":
        beside = counts.n_samples + counts.n_validation
    return alone * (OUTER_WIDTH + hidden if by_head else hidden) + beside * hidden


def _disk_bytes(plan: RunPlan, counts: _Counts, dim: int) -> dict[str, int]:
    adapter_and_moments = 3 * FLOAT_BYTES * plan.model.n_lora_parameters
    entries = sum(_gradient_evaluations(plan.config, counts).values()) * dim
    entries += _forward_entries(plan, counts)
    return {
        "features": entries * FEATURE_BYTES,
        "checkpoints": _n_saved_checkpoints(plan.config) * adapter_and_moments,
    }


def _n_saved_checkpoints(config: RunConfig) -> int:
    baselines = config.evaluate.baselines
    by_target = len(config.all_targets) * (1 + ("full" in baselines))
    subjects = by_target + ("random" in baselines) * config.evaluate.random_seeds
    needs_warmup = config.mode == "dynamic" or config.selection.policy != "random" or "full" in baselines
    warmup = (config.warmup.epochs if config.mode == "static" else 1) if needs_warmup else 0
    return warmup + subjects * config.finetune.epochs


def _memory_bytes(plan: RunPlan, counts: _Counts, dim: int) -> dict[str, int]:
    weights = WEIGHT_BYTES.get(plan.model.settings.dtype, FLOAT_BYTES)
    memory = {
        "model weights": plan.model.n_parameters * weights,
        "adapter, its gradient and moments": 4 * FLOAT_BYTES * plan.model.n_lora_parameters,
    }
    if is_bandit(plan.config.selection.policy) and plan.config.clusters.features == "gradient":
        # the rows, and as much again while they are clustered
        memory["clustering (main memory)"] = 2 * FLOAT_BYTES * counts.n_samples * dim
    return memory


def _warnings(plan: RunPlan, counts: _Counts, targets: Sequence[Target], *, disk_bytes: int) -> Iterator[str]:
    config = plan.config
    if config.finetune.batch_size > counts.n_selected:
        yield (
            f"finetune.batch_size={config.finetune.batch_size} is above the {counts.n_selected} selected "
            "samples: each epoch is one optimiser step on a smaller batch"
        )
    warmup_samples = max(1, share_of(config.warmup.fraction, counts.n_samples))
    if config.mode == "static" and config.warmup.batch_size > warmup_samples:
        yield (
            f"warmup.batch_size={config.warmup.batch_size} is above the {warmup_samples} samples of the "
            "warmup: each epoch is one optimiser step on a smaller batch"
        )
    draws_clusters = is_bandit(config.selection.policy) and config.selection.policy != "linucb"
    if draws_clusters and counts.budget_samples < 2 * counts.n_clusters:
        yield (
            f"the budget of {counts.budget_samples} samples leaves fewer than two draws for each of "
            f"{counts.n_clusters} clusters; raise selection.budget_fraction or lower clusters.k"
        )
    yield from _side_warnings(config)
    for target in targets:
        if not target.test:
            yield f"target {target.name!r} has no test rows: no test loss will be measured; set target.test"
    free = shutil.disk_usage(_existing(plan.workspace.artifacts)).free
    if disk_bytes > free:
        # what an object store holds is copied here
        remedy = "set CLUSTERUCB_HOME" if plan.workspace.is_mirrored else "set execution.storage_root"
        yield (
            f"about {disk_bytes / 2**30:.1f} GiB of artifacts do not fit the {free / 2**30:.1f} GiB free at "
            f"{plan.workspace.artifacts}; {remedy}, or lower features.projection_dim"
        )


def _side_warnings(config: RunConfig) -> Iterator[str]:
    """Yield what is set of side information and not read."""
    settings = config.selection
    if settings.policy != "linucb" and settings.context != "gradient":
        yield f"selection.context={settings.context} is not used: {settings.policy} draws from clusters"
    if settings.proxy_model is not None and not needs_proxy(settings):
        yield "selection.proxy_model is not used: set selection.context=proxy with policy linucb"


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.exists())
