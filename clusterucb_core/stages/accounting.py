"""What each selection of a run took: gradients computed now or reused, by stage, and their operations.

Reads feature shards and tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clusterucb_core.cost import (
    CostLedger,
    CostTable,
    StageCost,
    add_cost,
    cost_by_stage,
    forward_cost,
    full_selection_cost,
    gradient_cost,
    total_cost,
)
from clusterucb_core.lm.tokens import token_counts
from clusterucb_core.records import ArtifactRef
from clusterucb_core.selection import is_bandit
from clusterucb_core.stages.clusters import read_clustering
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.drawn import read_pulls
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.intake import candidate_ids, read_target
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.stages.scores import plain_space
from clusterucb_core.stages.separation import shuffled_samples
from clusterucb_core.workspace import Workspace

Need = tuple[str, FeatureSpace, frozenset[str]]
# samples of each feature space that an earlier selection of the same run has paid for
Charged = dict[FeatureSpace, set[str]]


@dataclass(frozen=True)
class SelectionCost:
    """Gradient evaluations (samples x checkpoints) of one selection, and its operations beside full ones."""

    computed: int
    reused: int
    target_computed: int
    flops: float
    full_flops: float
    full_evaluations: int
    by_stage: CostTable


@dataclass(frozen=True)
class NeededCost:
    """What selections rest on, whoever computed it, beside full selection."""

    evaluations: int
    flops: float
    full_flops: float
    by_stage: CostTable


def selection_cost(spec: DrawSpec, draws: ArtifactRef, workspace: Workspace, run_id: str) -> SelectionCost:
    """Return what a selection needed, split by whether this run computed it or an earlier one had."""
    return run_costs([(spec, draws)], workspace, run_id)[0]


def run_costs(
    selections: Sequence[tuple[DrawSpec, ArtifactRef]], workspace: Workspace, run_id: str
) -> list[SelectionCost]:
    """Return what each selection of a run needed, in the order given.

    What this run computed is paid for by the first selection that needs it and reused by those after it, so
    that the costs of several targets add up to what was computed.
    """
    charged: Charged = {}
    return [_cost(spec, draws, workspace, run_id=run_id, charged=charged) for spec, draws in selections]


def _cost(
    spec: DrawSpec, draws: ArtifactRef, workspace: Workspace, *, run_id: str, charged: Charged
) -> SelectionCost:
    needs = _needs(spec, _drawn_ids(draws))
    paid = [
        (stage, space, _paid_by(space, needed, workspace, run_id=run_id, charged=charged))
        for stage, space, needed in needs
    ]
    ledger, full = _ledger(spec, paid), _full_cost(spec)
    total = total_cost(ledger)
    gradients = sum(len(needed) for _, space, needed in needs if space.has_gradients)
    return SelectionCost(
        computed=total.gradient_evaluations,
        reused=gradients - total.gradient_evaluations,
        target_computed=_target_evaluations(spec, workspace, run_id=run_id, charged=charged),
        flops=total.flops,
        full_flops=full.flops,
        full_evaluations=full.gradient_evaluations,
        by_stage=cost_by_stage(ledger),
    )


def needed_cost(selections: Sequence[tuple[DrawSpec, ArtifactRef]]) -> NeededCost:
    """Return what the selections of one subject rest on, period by period."""
    ledger, full_flops = CostLedger(), 0.0
    for spec, draws in selections:
        entries = _ledger(spec, _needs(spec, _drawn_ids(draws))).entries
        ledger = CostLedger((*ledger.entries, *entries))
        full_flops += _full_cost(spec).flops
    total = total_cost(ledger)
    return NeededCost(total.gradient_evaluations, total.flops, full_flops, cost_by_stage(ledger))


def _ledger(spec: DrawSpec, needs: Sequence[Need], tokens: Mapping[str, int] | None = None) -> CostLedger:
    tokens = token_counts(spec.tokens) if tokens is None else tokens
    # those of a proxy are its own
    side_tokens = (
        token_counts(spec.context.pool) if spec.context and spec.context.pool != spec.tokens else tokens
    )
    ledger = CostLedger()
    for stage, space, samples in needs:
        counts = side_tokens if spec.context and space == spec.context.space else tokens
        n_tokens = sum(counts[sample] for sample in samples)
        ledger = add_cost(ledger, stage, _pass_cost(space, n_samples=len(samples), n_tokens=n_tokens))
    return ledger


def _full_cost(spec: DrawSpec) -> StageCost:
    tokens, every = token_counts(spec.tokens), candidate_ids(spec.candidates)
    return full_selection_cost(
        n_samples=len(every),
        n_checkpoints=max(1, len(spec.spaces)),
        n_parameters=spec.spaces[0].model.n_parameters if spec.spaces else 0,
        n_tokens=sum(tokens[sample] for sample in every),
    )


def feature_spaces(spec: DrawSpec) -> list[FeatureSpace]:
    """Return the spaces that hold features of pool samples for a selection, each once."""
    first = [spec.first_space] if spec.first_space else []
    context = spec.context.spaces if spec.context else ()
    return list(dict.fromkeys((*spec.spaces, *first, *context)))


def _pass_cost(space: FeatureSpace, *, n_samples: int, n_tokens: int) -> StageCost:
    if not space.has_gradients:
        return forward_cost(n_parameters=space.model.n_parameters, n_tokens=n_tokens)
    return gradient_cost(
        n_samples=n_samples, n_checkpoints=1, n_parameters=space.model.n_parameters, n_tokens=n_tokens
    )


def replayed_cost(spec: DrawSpec, drawn: frozenset[str], *, tokens: Mapping[str, int]) -> StageCost:
    """Return what a selection rests on, whoever computed it.

    Args:
        spec: the selection.
        drawn: the samples that its policy drew; no matter where it draws under no budget.
        tokens: the number of tokens of every candidate.
    """
    return total_cost(_ledger(spec, _needs(spec, drawn), tokens))


def _drawn_ids(draws: ArtifactRef) -> frozenset[str]:
    return frozenset(read_pulls(draws)["sample_id"])


def _needs(spec: DrawSpec, drawn: frozenset[str]) -> list[Need]:
    """Return stage, feature space and samples of every feature that a selection rests on, each one once.

    Side information costs nothing here: it is that of the pass that the clusters come from, too.
    """
    if spec.settings.policy == "random":
        return []
    wanted: list[Need] = []
    everything = frozenset(candidate_ids(spec.candidates))
    if spec.clustering is not None and spec.first_space is not None and spec.period == 1:
        wanted.append(("clustering", spec.first_space, frozenset(read_clustering(spec.clustering)[0])))
    read = drawn if is_bandit(spec.settings.policy) else everything
    wanted.extend(("selection", space, read) for space in spec.spaces)
    needs: list[Need] = []
    for stage, space, samples in wanted:
        taken = frozenset[str]().union(*(held for _, other, held in needs if other == space))
        needs.append((stage, space, samples - taken))
    return needs


def _paid_by(
    space: FeatureSpace, needed: frozenset[str], workspace: Workspace, *, run_id: str, charged: Charged
) -> frozenset[str]:
    """Return the needed samples whose shard names this run as the one that computed it, and charge them."""
    store = open_store(space, workspace)
    before = charged.setdefault(space, set())
    known = store.known.intersection(needed) - before
    paid = frozenset(sample for sample in known if store.provenance(sample).get("run_id") == run_id)
    before.update(paid)
    return paid


def _target_evaluations(spec: DrawSpec, workspace: Workspace, *, run_id: str, charged: Charged) -> int:
    target = read_target(spec.target)
    needs = [(space, [row.row_id for row in target.validation]) for space in spec.spaces]
    if spec.period == 1 and spec.spaces:
        shuffled = shuffled_samples(target, seed=spec.seed).values()
        needs.append((spec.spaces[0], [sample.sample_id for samples in shuffled for sample in samples]))
    return sum(
        len(_paid_by(plain_space(space), frozenset(rows), workspace, run_id=run_id, charged=charged))
        for space, rows in needs
    )
