"""From files to the candidates of a run: ingest, target, tokens."""

from clusterucb_core.frozen import Frozen
from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.intake import CandidatesSpec, TokensSpec
from clusterucb_core.store import PoolVersion
from tasks.ingest import choose_candidates, ingest_pool, read_target, record_pool, tokenize


class Inputs(Frozen):
    """What the files of a run became."""

    pool: ArtifactRef
    pool_version: PoolVersion
    target: ArtifactRef
    tokens: ArtifactRef
    validation_tokens: ArtifactRef
    test_tokens: ArtifactRef
    candidates: ArtifactRef


def prepare(plan: RunPlan) -> Inputs:
    """Ingest the pool, read the target, tokenize both, and leave out what cannot be drawn."""
    workspace, model = plan.workspace, plan.model
    pool = ingest_pool(plan.ingest, workspace)
    version = record_pool(pool, workspace)
    target = read_target(plan.target, workspace)
    limit = plan.config.pool.max_samples
    tokens = tokenize(
        TokensSpec(source=pool, split="pool", model=model, max_samples=limit, seed=plan.config.seed),
        workspace,
    )
    validation = tokenize(TokensSpec(source=target, split="validation", model=model), workspace)
    test = tokenize(TokensSpec(source=target, split="test", model=model), workspace)
    candidates = choose_candidates(CandidatesSpec(pool=pool, tokens=tokens, target=target), workspace)
    return Inputs(
        pool=pool,
        pool_version=version,
        target=target,
        tokens=tokens,
        validation_tokens=validation,
        test_tokens=test,
        candidates=candidates,
    )
