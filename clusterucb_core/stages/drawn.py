"""What a selection saw and chose: the record, and the files of the artifact `draws` that keep it.

Reads and writes files of that artifact.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from clusterucb_core.artifacts import artifact_file, read_manifest
from clusterucb_core.bandit.pulls import PullLog
from clusterucb_core.certificate import Certificate
from clusterucb_core.influence import NO_COLUMN, Choice
from clusterucb_core.records import ArtifactRef, Exclusion, FloatArray, IntArray
from clusterucb_core.separation import Separation

NO_CLUSTER = -1


@dataclass(frozen=True)
class Drawn:
    """What a selection saw of n samples: which rows [m] in drawing order, their scores [m, s], the pulls.

    `subtasks` [s] name the columns of scores; `clusters` [n] are those of all samples. Of the pulls, the last
    `n_uniform` are a simple random sample of the `n_left` samples that were left. `unspent_samples` of the
    budget were not drawn, because of an early stop.
    """

    sample_ids: list[str]
    seen: IntArray
    scores: FloatArray
    subtasks: tuple[str, ...]
    clusters: IntArray
    pulls: PullLog | None
    exclusions: tuple[Exclusion, ...]
    budget_samples: int
    n_uniform: int = 0
    n_left: int = 0
    unspent_samples: int = 0


def write_drawn(folder: Path, drawn: Drawn, choice: Choice) -> None:
    """Write the chosen rows in rank order, every pull, and the scores of all that was seen."""
    selected = pl.DataFrame(
        {
            "rank": np.arange(1, len(choice.rows) + 1),
            "sample_id": [drawn.sample_ids[row] for row in choice.rows],
            "influence": choice.influence,
            "cluster": drawn.clusters[choice.rows],
            "subtask": [None if column == NO_COLUMN else drawn.subtasks[column] for column in choice.columns],
        },
        schema_overrides={"subtask": pl.String},
    ).with_columns(pl.col("influence").fill_nan(None), pl.col("cluster").replace(NO_CLUSTER, None))
    selected.write_parquet(folder / "selected.parquet")
    _pull_frame(drawn).write_parquet(folder / "pulls.parquet")
    _score_frame(drawn).write_parquet(folder / "scores.parquet")
    (folder / "selected.txt").write_text("\n".join(selected["sample_id"]), encoding="utf-8")


def read_selected(ref: ArtifactRef) -> pl.DataFrame:
    """Return rank, sample_id, influence, cluster and subtask of the selected samples.

    `subtask` names the one that the influence is the score on: that of the maximum, or the one whose turn it
    was; null under the mean, and where samples were chosen at random.
    """
    return pl.read_parquet(artifact_file(ref, "selected.parquet"))


def read_pulls(ref: ArtifactRef) -> pl.DataFrame:
    """Return every pull in drawing order, with the columns of the table `pulls`."""
    return pl.read_parquet(artifact_file(ref, "pulls.parquet"))


def read_scores(ref: ArtifactRef) -> pl.DataFrame:
    """Return sample_id and a column of scores for each subtask, for every sample that a selection saw.

    Rows are in drawing order, or in the pool's where no bandit drew.
    """
    return pl.read_parquet(artifact_file(ref, "scores.parquet"))


def draw_exclusions(ref: ArtifactRef) -> tuple[Exclusion, ...]:
    """Return the samples that a selection could not use because of their gradients."""
    return tuple(Exclusion(**item) for item in read_manifest(ref)["exclusions"])


def read_certificate(ref: ArtifactRef) -> Certificate | None:
    """Return what a selection is estimated to have missed; None where nothing was audited."""
    found = read_manifest(ref)["certificate"]
    return None if found is None else Certificate(**found)


def read_separation(ref: ArtifactRef) -> Separation | None:
    """Return how well the target separated the pool; None where the selection was not checked."""
    found = read_manifest(ref)["separation"]
    return None if found is None else Separation(**found)


def _score_frame(drawn: Drawn) -> pl.DataFrame:
    ids = pl.Series("sample_id", [drawn.sample_ids[row] for row in drawn.seen], dtype=pl.String)
    scores = [pl.Series(name, drawn.scores[:, column]) for column, name in enumerate(drawn.subtasks)]
    return pl.DataFrame([ids, *scores])


def _pull_frame(drawn: Drawn) -> pl.DataFrame:
    log = drawn.pulls
    schema = {
        "step": pl.Int64,
        "round": pl.Int64,
        "cluster": pl.Int64,
        "sample_id": pl.String,
        "reward": pl.Float64,
        "kind": pl.String,
        "bound": pl.Float64,
        "arm_mean": pl.Float64,
        "arm_std": pl.Float64,
        "arm_left": pl.Int64,
    }
    if log is None:
        return pl.DataFrame(schema=schema)
    columns = {
        "step": np.arange(len(log.samples)),
        "round": log.rounds,
        "cluster": log.arms,
        "sample_id": [drawn.sample_ids[row] for row in log.samples],
        "reward": log.rewards,
        "kind": [str(kind) for kind in log.kinds],
        "bound": log.bounds,
        "arm_mean": log.means,
        "arm_std": log.stds,
        "arm_left": log.lefts,
    }
    return pl.DataFrame(columns, schema=schema).with_columns(
        pl.col("bound", "arm_mean", "arm_std").fill_nan(None)
    )
