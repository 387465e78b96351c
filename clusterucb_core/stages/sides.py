"""What a selection sees before it draws: the features that the pool is clustered by, and those of `linucb`.

Either may come from gradients at the first checkpoint or from the forward pass there, side information also
from the forward pass of a smaller model with tokens of its own. Reads the artifacts `tokens`, `candidates`
and `target`.
"""

from collections.abc import Iterator, Sequence

from clusterucb_core.clustering import ClusterSettings
from clusterucb_core.errors import InvalidTarget, TooManyExcluded
from clusterucb_core.features.forward import PARTS, PartName
from clusterucb_core.frozen import Frozen
from clusterucb_core.influence import takes_turns
from clusterucb_core.lm.tokens import TokenTable, open_tokens
from clusterucb_core.records import ArtifactRef, Exclusion
from clusterucb_core.selection import ContextName, SelectionSettings, is_bandit
from clusterucb_core.stages.forward import head_space, states_space
from clusterucb_core.stages.intake import candidate_ids, read_target
from clusterucb_core.stages.models import FeatureSpace, ModelRef
from clusterucb_core.stages.scores import plain_space


class ModelTokens(Frozen):
    """A model, and the pool and the validation rows in its tokens."""

    model: ModelRef
    pool: ArtifactRef
    validation: ArtifactRef


class ContextSource(Frozen):
    """Where side information comes from.

    `space` holds the features of pool samples, computed from the tokens `pool`; `targets` those of validation
    rows, computed from `validation`, which count with `weights`. Of forward-only features `parts` are read.
    What the forward pass of a gradient gives besides is a source `beside` it, and takes no pass of its own.
    """

    space: FeatureSpace
    targets: tuple[FeatureSpace, ...]
    weights: tuple[float, ...]
    pool: ArtifactRef
    validation: ArtifactRef
    parts: tuple[PartName, ...] = ()
    beside: "ContextSource | None" = None

    @property
    def spaces(self) -> tuple[FeatureSpace, ...]:
        """The spaces that must hold a sample for it to have side information."""
        return (self.space, *(self.beside.spaces if self.beside else ()))


class Sides(Frozen):
    """The space that the pool is clustered in, computed from `tokens`, and the source of side information.

    Of forward-only features `parts` are clustered.
    """

    clusters: FeatureSpace
    context: ContextSource | None
    tokens: ArtifactRef
    parts: tuple[PartName, ...] = ()


class FeaturePass(Frozen):
    """Samples whose features in a space come before any draw."""

    space: FeatureSpace
    tokens: ArtifactRef
    sample_ids: tuple[str, ...]


def sides_of(
    settings: SelectionSettings,
    clusters: ClusterSettings,
    *,
    first: FeatureSpace,
    counted: Sequence[tuple[FeatureSpace, float]],
    tokens: tuple[ModelTokens, ModelTokens | None],
) -> Sides:
    """Return what the settings of a run say about where clusters and side information come from.

    Args:
        settings: of the selection.
        clusters: of the clustering.
        first: the space of the pool's gradients at the first checkpoint.
        counted: those at the checkpoints that count, with their weights.
        tokens: the run's model with its tokens, and the proxy with its own, where the settings name one.
    """
    own, proxy = tokens
    kind = context_kind(settings, clusters)
    context = None if kind is None else context_source(kind, first, counted=counted, own=own, proxy=proxy)
    if context is not None and settings.policy != "linucb":
        # it reads the guess alone
        context = context.model_copy(update={"beside": None})
    if settings.policy == "linucb" and context is not None:
        # it draws by samples: clusters are there to be looked at, and take no pass of their own
        return Sides(clusters=context.space, context=context, tokens=context.pool, parts=context.parts)
    if clusters.features == "gradient":
        return Sides(clusters=first, context=context, tokens=own.pool)
    states = states_space(first.model, first.checkpoint)
    return Sides(clusters=states, context=context, tokens=own.pool, parts=PARTS["states"])


def context_kind(settings: SelectionSettings, clusters: ClusterSettings) -> ContextName | None:
    """Return what side information a selection reads; None where it reads none.

    Where subtasks take turns, a cluster policy brings them to one scale by a guess from what it clusters.
    """
    if settings.policy == "linucb":
        return settings.context
    return clusters.features if is_bandit(settings.policy) and takes_turns(settings.aggregate) else None


def context_source(
    kind: ContextName,
    first: FeatureSpace,
    *,
    counted: Sequence[tuple[FeatureSpace, float]],
    own: ModelTokens,
    proxy: ModelTokens | None,
) -> ContextSource:
    """Return where side information of a kind comes from.

    Args:
        kind: from `context_kind`.
        first: the space of the pool's gradients at the first checkpoint.
        counted: the spaces of the pool's gradients at the checkpoints that count, with their weights.
        own: the run's model and its tokens.
        proxy: the smaller model and its tokens, where the settings name one.
    """
    if kind == "gradient":
        return ContextSource(
            space=first,
            targets=tuple(plain_space(space) for space, _ in counted),
            weights=tuple(weight for _, weight in counted),
            pool=own.pool,
            validation=own.validation,
            beside=_forward_source(states_space(first.model, first.checkpoint), own),
        )
    if kind == "proxy":
        assert proxy is not None, "the settings were checked: a proxy context names its model"
        return _forward_source(states_space(proxy.model, None), proxy)
    if kind == "hidden_state":
        return _forward_source(states_space(first.model, first.checkpoint), own)
    return _forward_source(head_space(first.model, first.checkpoint, seed=first.seed), own)


def _forward_source(space: FeatureSpace, place: ModelTokens) -> ContextSource:
    return ContextSource(
        space=space,
        targets=(space,),
        weights=(1.0,),
        pool=place.pool,
        validation=place.validation,
        parts=PARTS["states" if space.kind == "states" else "forward"],
    )


def kept_states(space: FeatureSpace, first: FeatureSpace) -> FeatureSpace | None:
    """Return the space that keeps the hidden states of a pass over some samples; None where none are kept.

    Args:
        space: what the pass computes: of gradients, those at the first checkpoint come with states.
        first: the space of the pool's gradients at the first checkpoint.
    """
    if not space.has_gradients or space.checkpoint != first.checkpoint:
        return None
    return states_space(space.model, space.checkpoint)


def side_passes(sides: Sides, candidates: ArtifactRef, target: ArtifactRef) -> Iterator[FeaturePass]:
    """Yield what must be computed before the first draw, for the pool and then for the target.

    Raises:
        InvalidTarget: a validation row has no token to learn from in a proxy's tokens.
    """
    every, known = candidate_ids(candidates), open_tokens(sides.tokens).rows
    ids = tuple(sample for sample in every if sample in known)
    for space in dict.fromkeys((sides.clusters, *(sides.context.spaces if sides.context else ()))):
        yield FeaturePass(space=space, tokens=sides.tokens, sample_ids=ids)
    if sides.context is not None:
        rows = _validation_ids(target, open_tokens(sides.context.validation))
        beside = sides.context.beside
        for space in (*sides.context.targets, *(beside.targets if beside else ())):
            yield FeaturePass(space=space, tokens=sides.context.validation, sample_ids=rows)


def token_exclusions(
    source: ContextSource, sample_ids: Sequence[str], *, max_excluded_fraction: float
) -> tuple[Exclusion, ...]:
    """Return the samples that have no token to learn from for the model of the side information.

    Raises:
        TooManyExcluded: their share is above the limit.
    """
    excluded = {exclusion.sample_id: exclusion for exclusion in open_tokens(source.pool).exclusions}
    lost = tuple(excluded[sample] for sample in sample_ids if sample in excluded)
    if len(lost) > max_excluded_fraction * len(sample_ids):
        raise TooManyExcluded(
            f"{len(lost)} of {len(sample_ids)} samples have no token to learn from for the model of the side "
            f"information (the first: {lost[0].reason}), above "
            f"features.max_excluded_fraction={max_excluded_fraction}; choose another selection.proxy_model "
            "or raise the limit"
        )
    return lost


def _validation_ids(target: ArtifactRef, table: TokenTable) -> tuple[str, ...]:
    rows = read_target(target)
    for number, row in enumerate(rows.validation, start=1):
        if row.row_id not in table.rows:
            raise InvalidTarget(
                f"validation row {number} of target {rows.name!r} has no token to learn from for the model "
                "of the side information; mend or remove the row, or choose another selection.proxy_model"
            )
    return tuple(row.row_id for row in rows.validation)
