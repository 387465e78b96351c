import json
import math

import numpy as np
import polars as pl
import pytest

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.errors import StaleArtifact
from clusterucb_core.evaluation import crossed_mean, paired_difference, seed_mean
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.pairing import compare_with_baselines, random_means
from clusterucb_core.store import EvaluationRow

LOSSES = np.array([[1.0, 2.0, 4.0, 3.0], [1.5, 2.5, 4.0, 3.5], [1.4, 2.9, 4.4, 3.1], [2.0, 3.0, 5.0, 4.0]])
SUBJECTS = ("selection", "random:0", "random:1", "full")
HITS = {"selection": (1.0, 1.0, 0.0, 1.0), "random:0": (0.0, 1.0, 0.0, 1.0), "random:1": (0.0, 1.0, 0.0, 0.0)}
NAMES = {"target": "sums", "version": 2, "run_id": "run"}
COLUMNS = ["task", "metric", "higher_is_better", "row", "value"]


@pytest.fixture
def evaluation(tmp_path):
    """Make the artifact of an evaluation: its losses, and scores of rows by task and metric."""

    def make(name, losses, scores=None):
        rows = [
            (task, metric, better, row, float(value))
            for (task, metric, better), values in (scores or {}).items()
            for row, value in enumerate(values)
        ]
        kinds = [pl.String, pl.String, pl.Boolean, pl.Int64, pl.Float64]
        with new_artifact(tmp_path, "evaluation", name, {}) as folder:
            np.save(folder / "losses.npy", np.array(losses, dtype=np.float64))
            table = pl.DataFrame(rows, schema=dict(zip(COLUMNS, kinds, strict=True)), orient="row")
            table.write_parquet(folder / "scores.parquet")
            (folder / "results.json").write_text(json.dumps([]), encoding="utf-8")
        return ArtifactRef(stage="evaluation", fingerprint=name, path=str(tmp_path / "evaluation" / name))

    return make


@pytest.fixture
def evaluations(evaluation):
    return {
        subject: evaluation(subject, losses, {("sums_generate", "exact_match", True): HITS.get(subject, ())})
        for subject, losses in zip(SUBJECTS, LOSSES, strict=True)
    }


def test_the_selection_is_set_against_each_baseline_and_all_random_ones(evaluations):
    found = {(r.baseline, r.metric): r for r in compare_with_baselines(evaluations, **NAMES)}
    pairs = {(name, "loss") for name in ("random:0", "random:1", "full", "random")}
    assert set(found) == pairs | {(name, "exact_match") for name in ("random:0", "random:1", "random")}
    together, alone = found["random", "loss"], found["random:0", "loss"]
    assert (together.difference, together.low, together.high) == crossed_mean(LOSSES[0] - LOSSES[1:3])
    assert (alone.difference, alone.low, alone.high) == paired_difference(LOSSES[0], LOSSES[1], seed=0)
    assert (together.n, together.n_seeds, alone.n_seeds) == (4, 2, 1)
    assert (together.selection_version, together.run_id, together.task) == (2, "run", "sums")


def test_a_difference_says_which_sign_is_better(evaluations):
    found = {(r.baseline, r.metric): r for r in compare_with_baselines(evaluations, **NAMES)}
    assert found["random", "exact_match"].difference == pytest.approx(0.75 - 0.375)
    assert found["random", "exact_match"].higher_is_better is True
    assert found["random", "loss"].difference < 0
    assert found["random", "loss"].higher_is_better is False


def test_without_a_selection_or_a_baseline_there_is_nothing_to_compare(evaluations):
    alone = {"selection": evaluations["selection"]}
    baselines = {name: ref for name, ref in evaluations.items() if name != "selection"}
    assert compare_with_baselines(alone, **NAMES) == compare_with_baselines(baselines, **NAMES) == []


def test_a_single_random_selection_is_a_baseline_like_the_others(evaluations):
    del evaluations["random:1"]
    assert {r.baseline for r in compare_with_baselines(evaluations, **NAMES)} == {"random:0", "full"}
    assert random_means(evaluations, [], target="sums", run_id="run") == []


def test_other_rows_cannot_be_paired(evaluation):
    pair = {"selection": evaluation("a", [1.0, 2.0]), "full": evaluation("b", [1.0, 2.0, 3.0])}
    with pytest.raises(StaleArtifact, match=r"different rows \(2, 3\)"):
        compare_with_baselines(pair, **NAMES)


def test_a_single_row_has_a_difference_without_an_interval_over_seeds(evaluation):
    of_one = {
        name: evaluation(name, [loss])
        for name, loss in (("selection", 1.0), ("random:0", 2.0), ("random:1", 4.0))
    }
    (row,) = [r for r in compare_with_baselines(of_one, **NAMES) if r.baseline == "random"]
    assert (row.difference, row.low, row.high, row.n) == (-2.0, None, None, 1)


def test_random_selections_have_a_mean_over_rows_and_seeds(evaluations):
    found = {row.metric: row for row in random_means(evaluations, [], target="sums", run_id="run")}
    loss, hits = found["loss"], found["exact_match"]
    assert (loss.value, loss.low, loss.high) == crossed_mean(LOSSES[1:3])
    assert (loss.subject, loss.selection_version, loss.n, loss.target) == ("random", None, 4, "sums")
    assert hits.value == 0.375
    assert (
        crossed_mean(np.array([HITS["random:0"], HITS["random:1"]]))[1] < hits.low == 0.0 < hits.high <= 1.0
    )


def test_the_mean_perplexity_is_that_of_the_logarithms(evaluation):
    logarithms = {"random:0": (0.0, 1.0, 2.0), "random:1": (1.0, 2.0, 3.5)}
    found = {
        name: evaluation(name, [], {("sums_perplexity", "log_perplexity", False): values})
        for name, values in logarithms.items()
    }
    (row,) = random_means(found, [], target="sums", run_id="run")
    assert (row.task, row.metric, row.n) == ("sums_perplexity", "perplexity", 3)
    expected = crossed_mean(np.array(list(logarithms.values())))
    assert (row.value, row.low, row.high) == pytest.approx([math.exp(value) for value in expected])


def test_measures_without_rows_have_an_interval_over_seeds(evaluations):
    def measure(subject, value, metric="recall"):
        return EvaluationRow(None, "run", subject, "sums", metric, value, None, None, 15, "sums")

    measures = [measure("random:0", 0.1), measure("random:1", 0.3), measure("selection", 0.9)]
    rows = random_means(
        evaluations, [*measures, measure("random:0", 1.0, "odd")], target="sums", run_id="run"
    )
    found = {row.metric: row for row in rows}
    assert (found["recall"].value, found["recall"].low, found["recall"].high) == seed_mean(
        np.array([0.1, 0.3])
    )
    assert found["recall"].n == 15
    assert "odd" not in found, "one of two seeds gives no mean over both"
