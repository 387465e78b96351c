"""The samples of a selection version that may be exported, with every column that an export can have.

Reads the catalog.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.export.exchanges import Turns
from clusterucb_core.export.options import WEIGHT, ExportOptions
from clusterucb_core.seeds import child_seed
from clusterucb_core.store import (
    SelectionSummary,
    open_catalog,
    selection_samples,
    selection_summary,
    withdrawn_in,
)

logger = logging.getLogger(__name__)

STAGE = "export"


@dataclass(frozen=True)
class Chosen:
    """A version, the samples of it that may be exported, in their order, and how many may not."""

    summary: SelectionSummary
    samples: pl.DataFrame
    erased: int
    withdrawn: int


def chosen_samples(catalog: Path, version: int | None, options: ExportOptions) -> Chosen:
    """Return the samples of a version with all columns of an export, in the order asked for.

    Args:
        catalog: the DuckDB file.
        version: a selection version; None means the last period of the newest complete run.
        options: the order, and whether there are weights.

    Returns:
        Columns rank, sample_id, influence, cluster, source, messages (JSON text), selection_version,
        pool_version and, where asked for, weight. Erased and withdrawn samples are left out.

    Raises:
        MissingArtifact: there is no catalog.
        UnknownVersion: the catalog holds no such version.
        InvalidConfig: weights were asked for and samples have no influence.
    """
    with open_catalog(catalog, read_only=True) as con:
        summary = selection_summary(con, version)
        every, withdrawn = selection_samples(con, summary.selection_version), withdrawn_in(con)
    every = every.with_columns(
        pl.lit(summary.selection_version, pl.Int32).alias("selection_version"),
        pl.lit(summary.pool_version, pl.Int32).alias("pool_version"),
    )
    if options.weights:
        _check_influence(every, summary)
        every = weighted(every)
    kept = every.filter(pl.col("messages").is_not_null())
    allowed = kept.filter(~pl.col("sample_id").is_in(list(withdrawn)))
    return Chosen(
        summary=summary,
        samples=_ordered(allowed, options),
        erased=len(every) - len(kept),
        withdrawn=len(kept) - len(allowed),
    )


def weighted(samples: pl.DataFrame) -> pl.DataFrame:
    """Add the weight of each sample: its influence, not below 0, over the mean of that.

    The mean is that of the whole version, so that the weights of others stay when a sample is erased. Where
    no sample has an influence above 0, all weights are 1.
    """
    positive = samples["influence"].clip(lower_bound=0.0)
    mean = positive.sum() / max(1, len(positive))
    if mean == 0.0:
        logger.warning("no sample has an influence above 0: every weight is 1")
        return samples.with_columns(pl.lit(1.0).alias(WEIGHT))
    return samples.with_columns((positive / mean).alias(WEIGHT))


def conversations_of(samples: pl.DataFrame) -> Iterator[Turns]:
    """Give the turns of each sample."""
    return (json.loads(text) for text in samples["messages"])


def _check_influence(samples: pl.DataFrame, summary: SelectionSummary) -> None:
    without = samples["influence"].null_count()
    if without:
        raise InvalidConfig(
            f"{without} of {len(samples)} samples of version {summary.selection_version} (policy "
            f"{summary.policy}) have no influence, so there are no weights; export without them"
        )


def _ordered(samples: pl.DataFrame, options: ExportOptions) -> pl.DataFrame:
    match options.order:
        case "rank":
            return samples.sort("rank")
        case "source":
            return samples.sort("source", "rank")
        case "random":
            drawn = [child_seed(options.seed, STAGE, sample_id) for sample_id in samples["sample_id"]]
            return samples.sort(pl.Series(drawn, dtype=pl.Int64), pl.col("rank"))
