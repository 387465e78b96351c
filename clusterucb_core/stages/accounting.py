"""What each selection of a run took: gradients computed now or reused, by stage, and their operations.

Reads feature shards and tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clusterucb_core.cost import (
    CostLedger,
    StageCost,
    add_cost,
    cost_by_stage,
    full_selection_cost,
    gradient_cost,
    total_cost,
)
from clusterucb_core.lm.tokens import open_tokens
from clusterucb_core.records import ArtifactRef
from clusterucb_core.selection import is_bandit
from clusterucb_core.stages.clusters import read_clustering
from clusterucb_core.stages.drawn import read_pulls
from clusterucb_core.stages.draws import DrawSpec
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
    by_stage: dict[str, dict[str, int | float]]


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
    tokens = token_counts(spec.tokens)
    n_checkpoints = max(1, len(spec.spaces))
    every = candidate_ids(spec.candidates)
    ledger, reused = CostLedger(), 0
    drawn = frozenset(read_pulls(draws)["sample_id"])
    for stage, space, needed in _needs(spec, drawn):
        paid = _paid_by(space, needed, workspace, run_id=run_id, charged=charged)
        reused += len(needed) - len(paid)
        cost = gradient_cost(
            n_samples=len(paid),
            n_checkpoints=1,
            n_parameters=space.model.n_parameters,
            n_tokens=sum(tokens[sample] for sample in paid),
        )
        ledger = add_cost(ledger, stage, cost)
    n_parameters = spec.spaces[0].model.n_parameters if spec.spaces else 0
    full = full_selection_cost(
        n_samples=len(every),
        n_checkpoints=n_checkpoints,
        n_parameters=n_parameters,
        n_tokens=sum(tokens[sample] for sample in every),
    )
    total = total_cost(ledger)
    return SelectionCost(
        computed=total.gradient_evaluations,
        reused=reused,
        target_computed=_target_evaluations(spec, workspace, run_id=run_id, charged=charged),
        flops=total.flops,
        full_flops=full.flops,
        full_evaluations=full.gradient_evaluations,
        by_stage=cost_by_stage(ledger),
    )


def needed_cost(spec: DrawSpec, drawn: frozenset[str], tokens: Mapping[str, int]) -> StageCost:
    """Return what a selection rests on, whoever computed it.

    Args:
        spec: the selection.
        drawn: the samples that its policy drew; no matter where it draws under no budget.
        tokens: the number of tokens of every candidate.
    """
    ledger = CostLedger()
    for stage, space, needed in _needs(spec, drawn):
        cost = gradient_cost(
            n_samples=len(needed),
            n_checkpoints=1,
            n_parameters=space.model.n_parameters,
            n_tokens=sum(tokens[sample] for sample in needed),
        )
        ledger = add_cost(ledger, stage, cost)
    return total_cost(ledger)


def token_counts(tokens: ArtifactRef) -> dict[str, int]:
    """Return the number of tokens of every sample of a `tokens` artifact."""
    table = open_tokens(tokens)
    return dict(zip(table.sample_ids, table.lengths.tolist(), strict=True))


def _needs(spec: DrawSpec, drawn: frozenset[str]) -> list[Need]:
    """Return stage, feature space and samples of every gradient that a selection rests on, each one once."""
    if spec.settings.policy == "random":
        return []
    needs: list[Need] = []
    everything = frozenset(candidate_ids(spec.candidates))
    clustered: frozenset[str] = frozenset()
    if spec.clustering is not None and spec.first_space in spec.spaces:
        clustered = frozenset(read_clustering(spec.clustering)[0])
        needs.append(("clustering", spec.first_space, clustered))
    wanted = drawn if is_bandit(spec.settings.policy) else everything
    for space in spec.spaces:
        rest = wanted - clustered if space == spec.first_space else wanted
        needs.append(("selection", space, rest))
    return needs


def _paid_by(
    space: FeatureSpace, needed: frozenset[str], workspace: Workspace, *, run_id: str, charged: Charged
) -> list[str]:
    """Return the needed samples whose shard names this run as the one that computed it, and charge them."""
    store = open_store(space, workspace)
    before = charged.setdefault(space, set())
    known = store.known.intersection(needed) - before
    paid = [sample for sample in known if store.provenance(sample).get("run_id") == run_id]
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
