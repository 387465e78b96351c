"""What may be chosen of an export: format, order, more columns, the trainers to describe it to."""

from typing import Literal

from pydantic import Field

from clusterucb_core.frozen import Frozen

ExportFormat = Literal["jsonl", "parquet", "alpaca", "sharegpt", "datasets"]
Order = Literal["rank", "random", "source"]
Trainer = Literal["llama-factory", "axolotl"]

PROVENANCE = ("sample_id", "source", "rank", "influence", "cluster", "selection_version", "pool_version")
WEIGHT = "weight"


class ExportOptions(Frozen):
    """How an export is laid out beside its format.

    Attributes:
        order: `rank`; `random`, drawn by `seed` for each sample on its own; `source`, by rank within one.
        seed: of the random order.
        weights: add the column `weight` (see `weighted`).
        provenance: add the columns of `PROVENANCE`.
        trainers: write beside the export what these trainers need to find it.
    """

    order: Order = "rank"
    seed: int = Field(default=0, ge=0)
    weights: bool = False
    provenance: bool = False
    trainers: tuple[Trainer, ...] = ()


def added_columns(options: ExportOptions) -> tuple[str, ...]:
    """Return the columns that the options add to the conversation itself."""
    return (PROVENANCE if options.provenance else ()) + ((WEIGHT,) if options.weights else ())


class ExportResult(Frozen):
    """What was written.

    Attributes:
        path: the file or folder named.
        n: samples in it.
        format: its format.
        version: the selection version.
        reshaped: conversations whose turns were joined or moved, since the format has no place for them as
            they are; read again they are samples of another id.
        files: what was written beside the samples: a card, what trainers need.
    """

    path: str
    n: int
    format: ExportFormat
    version: int
    reshaped: int = 0
    files: tuple[str, ...] = ()
