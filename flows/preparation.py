"""From files to the candidates of a run: ingest, targets, tokens."""

from clusterucb_core.frozen import Frozen
from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.intake import CandidatesSpec, TokensSpec, shared_spec
from clusterucb_core.stages.models import ModelRef
from clusterucb_core.stages.sides import ModelTokens
from clusterucb_core.store import PoolVersion
from flows.events import announce_pool
from tasks.ingest import choose_candidates, ingest_pool, read_target, record_pool, share_candidates, tokenize


class Inputs(Frozen):
    """What the files of a run became, seen for one of its targets.

    Its selection draws from `candidates`. What the targets share comes from `drawable`, the candidates of any
    of them (features, clusters), and from `trainable`, the candidates of every one (warmup). `proxy` is the
    smaller model of side information with tokens of its own, where there is one.
    """

    pool: ArtifactRef
    pool_version: PoolVersion
    tokens: ArtifactRef
    drawable: ArtifactRef
    trainable: ArtifactRef
    name: str
    target: ArtifactRef
    validation_tokens: ArtifactRef
    test_tokens: ArtifactRef
    candidates: ArtifactRef
    proxy: ModelTokens | None = None

    @property
    def artifacts(self) -> list[ArtifactRef]:
        """Everything that the files became."""
        pair = [self.proxy.pool, self.proxy.validation] if self.proxy else []
        tokens = [self.tokens, self.validation_tokens, self.test_tokens, *pair]
        return [self.pool, self.target, *tokens, self.drawable, self.trainable, self.candidates]


def prepare(plan: RunPlan) -> list[Inputs]:
    """Ingest the pool, read the targets, tokenize both, and leave out what cannot be drawn.

    Returns:
        The inputs for each target, in the order of the configuration.
    """
    workspace, model = plan.workspace, plan.model
    pool = ingest_pool(plan.ingest, workspace)
    version = record_pool(pool, workspace)
    announce_pool(version)
    limit = plan.config.pool.max_samples
    tokens = tokenize(
        TokensSpec(source=pool, split="pool", model=model, max_samples=limit, seed=plan.config.seed),
        workspace,
    )
    targets = [read_target(spec, workspace) for spec in plan.targets]
    candidates = [
        choose_candidates(CandidatesSpec(pool=pool, tokens=tokens, target=target), workspace)
        for target in targets
    ]
    drawable = share_candidates(shared_spec(candidates, "any"), workspace)
    trainable = share_candidates(shared_spec(candidates, "every"), workspace)
    return [
        Inputs(
            pool=pool,
            pool_version=version,
            tokens=tokens,
            drawable=drawable,
            trainable=trainable,
            name=spec.settings.name,
            target=target,
            validation_tokens=tokenize(TokensSpec(source=target, split="validation", model=model), workspace),
            test_tokens=tokenize(TokensSpec(source=target, split="test", model=model), workspace),
            candidates=own,
            proxy=None if plan.proxy is None else _tokens_of(plan, plan.proxy, pool=pool, target=target),
        )
        for spec, target, own in zip(plan.targets, targets, candidates, strict=True)
    ]


def chance_inputs(inputs: Inputs) -> Inputs:
    """Return the inputs of a choice by chance, which serves every target: nothing in it leaks into any."""
    return inputs.model_copy(update={"candidates": inputs.trainable})


def _tokens_of(plan: RunPlan, model: ModelRef, *, pool: ArtifactRef, target: ArtifactRef) -> ModelTokens:
    limit, seed = plan.config.pool.max_samples, plan.config.seed
    samples = TokensSpec(source=pool, split="pool", model=model, max_samples=limit, seed=seed)
    rows = TokensSpec(source=target, split="validation", model=model)
    return ModelTokens(
        model=model, pool=tokenize(samples, plan.workspace), validation=tokenize(rows, plan.workspace)
    )
