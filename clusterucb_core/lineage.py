"""What a run rests on and what it leaves, as a tracker names them: data sets by version, adapters by target.

Reads artifacts only. Nothing here holds any text of a sample.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.frozen import Frozen
from clusterucb_core.stages.evaluation import measured_digest
from clusterucb_core.stages.intake import read_target
from clusterucb_core.stages.models import checkpoint_folder
from clusterucb_core.stages.summary import TargetOutcome
from clusterucb_core.stages.training import selected_ids
from clusterucb_core.store import PoolVersion
from clusterucb_core.targets.catalog import target_digest

DIGEST_DIGITS = 16  # a tracker takes 36 characters, of which a version number needs some


class TrackedDataset(Frozen):
    """One version of a table that a run read or wrote; `facts` say where it is found again."""

    name: str
    digest: str
    context: Literal["pool", "target", "selection"]
    rows: int
    facts: dict[str, str]


class TrackedAdapter(Frozen):
    """The adapter that a run trained for one target.

    Attributes:
        model: the name that all adapters for this target share.
        place: the folder of the run's files that it is kept in.
        folder: where it lies now.
        tags: the versions that it comes from.
        test_loss: mean loss on the target's test rows, None where there are none.
        test_digest: names these rows and their tokens: only losses on the same ones are compared.
    """

    model: str
    place: str
    folder: str
    tags: dict[str, str]
    test_loss: float | None
    test_digest: str | None


def run_datasets(pool: PoolVersion, outcomes: Sequence[TargetOutcome]) -> Iterator[TrackedDataset]:
    """Yield the pool version, the rows of each target, and the selection versions."""
    number = pool.pool_version
    yield TrackedDataset(
        name="pool",
        digest=f"v{number}-{pool.digest[:DIGEST_DIGITS]}",
        context="pool",
        rows=pool.n_samples,
        facts={"table": "pool_samples", "pool_version": str(number), "digest": pool.digest},
    )
    for outcome in outcomes:
        yield from _target_rows(outcome)
        for version, period in zip(outcome.versions, outcome.chosen.periods, strict=True):
            ids = selected_ids(period.draws)
            yield TrackedDataset(
                name=f"selection-{outcome.target}",
                digest=f"v{version}-{fingerprint(ids)[:DIGEST_DIGITS]}",
                context="selection",
                rows=len(ids),
                facts={
                    "table": "selection_samples",
                    "selection_version": str(version),
                    "period": str(period.spec.period),
                },
            )


def run_adapters(
    pool: PoolVersion, outcomes: Sequence[TargetOutcome], *, run_id: str, limit: int | None
) -> Iterator[TrackedAdapter]:
    """Yield the adapter that the selection of each target gave.

    Args:
        pool: the pool version that was selected from.
        outcomes: what the run came to for each target.
        run_id: the run.
        limit: how many test rows were measured, `evaluate.limit`.
    """
    for outcome in outcomes:
        if outcome.chosen.checkpoint is None:
            continue
        (own,) = (item for item in outcome.subjects if item.subject == outcome.chosen.subject)
        compared = own.loss is not None and outcome.test_tokens is not None
        yield TrackedAdapter(
            model=f"clusterucb-{outcome.target}",
            place="adapter" if len(outcomes) == 1 else f"adapter-{outcome.target}",
            folder=str(checkpoint_folder(outcome.chosen.checkpoint)),
            tags={
                "clusterucb.run_id": run_id,
                "clusterucb.target": outcome.target,
                "clusterucb.pool_version": str(pool.pool_version),
                "clusterucb.selection_version": str(outcome.versions[-1]),
            },
            test_loss=own.loss if compared else None,
            test_digest=_measured(outcome, limit) if compared else None,
        )


def _target_rows(outcome: TargetOutcome) -> Iterator[TrackedDataset]:
    target = read_target(outcome.chosen.periods[0].spec.target)
    digest = target_digest(target)[:DIGEST_DIGITS]
    for split, rows in (("validation", target.validation), ("test", target.test)):
        if rows:
            yield TrackedDataset(
                name=f"{outcome.target}-{split}",
                digest=digest,
                context="target",
                rows=len(rows),
                facts={"target": outcome.target, "split": split, "digest": target_digest(target)},
            )


def _measured(outcome: TargetOutcome, limit: int | None) -> str:
    assert outcome.test_tokens is not None, "a loss is compared where its tokens are known"
    return measured_digest(outcome.chosen.periods[0].spec.target, outcome.test_tokens, limit)
