"""What a selection sees before it draws: gradients, side information, clusters; computed shard by shard."""

from prefect import unmapped

from clusterucb_core.frozen import Frozen
from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.selection import SelectionSettings, is_bandit
from clusterucb_core.stages.clusters import ClusterSpec
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.features import plan_jobs
from clusterucb_core.stages.intake import candidate_ids, validation_ids
from clusterucb_core.stages.models import FeatureSpace
from clusterucb_core.stages.scores import plain_space
from clusterucb_core.stages.sides import FeaturePass, ModelTokens, Sides, kept_states, side_passes, sides_of
from flows.preparation import Inputs
from flows.progress import show_progress
from flows.ray_cluster import workers_workspace
from tasks.cluster import cluster_pool
from tasks.featurize import featurize_on_node, featurize_shard


class Checkpoints(Frozen):
    """The pool's feature spaces at the checkpoints that count, their weights, and that at the first one."""

    spaces: tuple[FeatureSpace, ...]
    weights: tuple[float, ...]
    first: FeatureSpace


def with_features(
    plan: RunPlan,
    inputs: Inputs,
    spec: DrawSpec,
    at: Checkpoints,
    *,
    clustering: ArtifactRef | None = None,
    followed: ArtifactRef | None = None,
) -> DrawSpec:
    """Compute what a selection sees before it draws, and return its spec with all of it.

    Args:
        plan: the run.
        inputs: what its files became.
        spec: the selection.
        at: the checkpoints.
        clustering: the run's clusters, where an earlier period has found them.
        followed: clusters of an earlier pool, which those of this one follow.
    """
    sides = _sides(plan, inputs, spec.settings, at)
    _featurize_target(plan, inputs, at)
    if not is_bandit(spec.settings.policy):
        _featurize_pool(plan, inputs, at)
    for item in side_passes(sides, inputs.drawable, inputs.target):
        _featurize(plan, item, at)
    return spec.model_copy(
        update={
            "spaces": at.spaces,
            "weights": at.weights,
            "clustering": clustering or _cluster(plan, inputs, sides, followed),
            "first_space": sides.clusters,
            "context": sides.context,
        }
    )


def _sides(plan: RunPlan, inputs: Inputs, settings: SelectionSettings, at: Checkpoints) -> Sides:
    own = ModelTokens(model=plan.model, pool=inputs.tokens, validation=inputs.validation_tokens)
    return sides_of(
        settings,
        plan.config.clusters,
        first=at.first,
        counted=list(zip(at.spaces, at.weights, strict=True)),
        tokens=(own, inputs.proxy),
    )


def _featurize_pool(plan: RunPlan, inputs: Inputs, at: Checkpoints) -> None:
    ids = tuple(candidate_ids(inputs.drawable))
    for space in at.spaces:
        _featurize(plan, FeaturePass(space=space, tokens=inputs.tokens, sample_ids=ids), at)


def _featurize_target(plan: RunPlan, inputs: Inputs, at: Checkpoints) -> None:
    ids, tokens = tuple(validation_ids(inputs.target)), inputs.validation_tokens
    for space in at.spaces:
        _featurize(plan, FeaturePass(space=plain_space(space), tokens=tokens, sample_ids=ids), at)


def _featurize(plan: RunPlan, item: FeaturePass, at: Checkpoints) -> None:
    jobs = plan_jobs(
        item.space,
        item.tokens,
        item.sample_ids,
        workspace=plan.workspace,
        execution=plan.execution,
        run_id=plan.run_id,
        states=kept_states(item.space, at.first),
    )
    if jobs:
        workspace = workers_workspace(plan.workspace, plan.execution)
        featurize = featurize_on_node if workspace.on_node else featurize_shard
        futures = featurize.map(jobs, unmapped(workspace), unmapped(plan.execution))
        show_progress(f"features-{item.space.kind}", futures)


def _cluster(plan: RunPlan, inputs: Inputs, sides: Sides, followed: ArtifactRef | None) -> ArtifactRef:
    spec = ClusterSpec(
        space=sides.clusters,
        tokens=sides.tokens,
        parts=sides.parts,
        candidates=inputs.drawable,
        settings=plan.config.clusters,
        features=plan.config.features,
        seed=plan.config.seed,
        followed=followed,
    )
    return cluster_pool(spec, plan.workspace)
