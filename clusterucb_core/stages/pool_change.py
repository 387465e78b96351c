"""How a pool has changed since an earlier selection, and the selection that follows it.

Reads the artifact `candidates`.
"""

from pydantic import Field

from clusterucb_core.frozen import Frozen
from clusterucb_core.records import ArtifactRef
from clusterucb_core.selection import SelectionSettings, is_bandit, share_of
from clusterucb_core.stages.drawing import DrawSpec, Followed
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.stages.publication import PeriodDraws

# Fewer fresh draws could not notice that the target's best samples are elsewhere now.
LEAST_FRESH_SAMPLES = 64


class ReselectSettings(Frozen):
    """When a re-selection starts over."""

    new_warmup_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        title="Share of new samples for a new warmup",
        description="A re-selection runs the whole pipeline again where a larger share of the pool has "
        "joined since the warmup that it would follow.",
    )


class PoolChange(Frozen):
    """What joined and left a target's candidates since the run that is followed.

    Attributes:
        n_samples: candidates now.
        n_added: of them, those that the followed run could not draw.
        n_removed: candidates of the followed run that are gone.
        n_since_warmup: candidates now that were none when the warmup was trained.
    """

    n_samples: int
    n_added: int
    n_removed: int
    n_since_warmup: int

    @property
    def is_none(self) -> bool:
        """Whether the candidates are the same."""
        return self.n_added == 0 and self.n_removed == 0


def pool_change(now: ArtifactRef, before: ArtifactRef, at_warmup: ArtifactRef) -> PoolChange:
    """Return how candidates have changed.

    Args:
        now: the candidates.
        before: those of the run that is followed.
        at_warmup: those that its warmup was drawn from.
    """
    ids, earlier, first = (set(candidate_ids(ref)) for ref in (now, before, at_warmup))
    return PoolChange(
        n_samples=len(ids),
        n_added=len(ids - earlier),
        n_removed=len(earlier - ids),
        n_since_warmup=len(ids - first),
    )


def asks_for_warmup(change: PoolChange, settings: ReselectSettings) -> bool:
    """Tell whether so much of the pool is new that the warmup that is followed does not stand for it."""
    return change.n_since_warmup > settings.new_warmup_share * change.n_samples


def fresh_samples(settings: SelectionSettings, n_added: int) -> int:
    """Return how many rewards one re-selection may compute: a share of what is new, at least 64."""
    return max(LEAST_FRESH_SAMPLES, share_of(settings.budget_fraction, n_added))


def following_spec(
    earlier: PeriodDraws, change: PoolChange, *, tokens: ArtifactRef, candidates: ArtifactRef, run_id: str
) -> DrawSpec:
    """Return the selection from a changed pool that follows an earlier one, at the same checkpoints.

    Args:
        earlier: the selection of one period.
        change: of its candidates.
        tokens: of the pool as it is now.
        candidates: those of the pool as it is now.
        run_id: the run that pays for it.
    """
    settings = earlier.spec.settings
    followed = Followed(draws=earlier.draws, fresh_samples=fresh_samples(settings, change.n_added))
    return earlier.spec.model_copy(
        update={
            "tokens": tokens,
            "candidates": candidates,
            "followed": followed if is_bandit(settings.policy) else None,
            "run_id": run_id,
        }
    )
