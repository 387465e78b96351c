import numpy as np
import polars as pl
import pytest

from clusterucb_core.artifacts import find_artifact, new_artifact
from clusterucb_core.evaluation import loss_result
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.comparison import REPLAYS, SCHEMA, Setting
from clusterucb_core.stages.comparison_summary import Trained, standard_error, summarise_settings

UCB, CHANCE = Setting(policy="ucb1", budget_fraction=0.1), Setting(policy="random")
POOR = Setting(policy="ucb1", budget_fraction=0.05)


def row(setting, seed, period, captured, covered=None):
    fixed = {"recall": 0.5, "draws": 10, "gradient_evaluations": 40 + seed, "gradient_cost": 0.25}
    fixed |= {"selection_flops": 8.0, "flops_share": 0.5, "target": "sums"}
    return fixed | setting.model_dump() | {
        "seed": seed, "period": period, "captured_influence": captured, "covered": covered,
    }  # fmt: skip


@pytest.fixture
def replays(tmp_path):
    rows = [
        row(UCB, 0, 2, 0.6, covered=True), row(UCB, 0, 3, 0.8, covered=True),
        row(UCB, 1, 2, 0.7, covered=True), row(UCB, 1, 3, 0.9, covered=False), row(CHANCE, 0, 2, 0.1),
    ]  # fmt: skip
    manifest = {"impossible": [POOR.model_dump() | {"reason": "too poor"}], "audit_fraction": 0.04}
    with new_artifact(tmp_path, "comparison", "key", manifest) as folder:
        pl.DataFrame(rows, schema=SCHEMA).write_parquet(folder / REPLAYS)
    return ArtifactRef(stage="comparison", fingerprint="key", path=str(tmp_path / "comparison" / "key"))


def test_means_are_over_seeds_and_periods_with_their_standard_error(replays):
    (line,) = summarise_settings(replays, [UCB], [])
    assert (line.target, line.policy, line.budget_fraction, line.replays) == ("sums", "ucb1", 0.1, 4)
    assert line.captured_influence == pytest.approx(0.75)
    # deviations -.15, .05, -.05, .15: a variance of .05 / 3, over 4 replays
    assert line.captured_se == pytest.approx((0.05 / 3 / 4) ** 0.5)
    assert line.captured_by_period == pytest.approx((0.65, 0.85))
    assert (line.covered, line.audit_fraction, line.gradient_evaluations) == (0.75, 0.04, 40.5)


def test_one_replay_has_no_standard_error_and_no_audit_no_coverage(replays):
    (line,) = summarise_settings(replays, [CHANCE], [])
    assert (line.captured_influence, line.captured_se, line.recall_se) == (0.1, None, None)
    assert (line.covered, line.audit_fraction) == (None, None)
    assert standard_error([]) is None


def test_a_setting_that_could_not_be_replayed_says_why(replays):
    (line,) = summarise_settings(replays, [POOR], [])
    assert (line.note, line.replays, line.captured_influence) == ("too poor", 0, None)


def test_the_loss_is_the_mean_over_adapters_of_each_test_row(replays, tmp_path):
    every = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]])
    trained = []
    for number, losses in enumerate(every):
        with new_artifact(tmp_path, "evaluation", str(number), {}) as folder:
            np.save(folder / "losses.npy", losses)
        ref = find_artifact(tmp_path, "evaluation", str(number))
        trained.append(Trained(setting=UCB, evaluation=ref))
    tuned, other = summarise_settings(replays, [UCB, CHANCE], trained)
    wanted = loss_result("", "sums", np.array([2.0, 2.0, 5.0]))
    assert (tuned.loss, tuned.loss_low, tuned.loss_high) == (3.0, wanted.low, wanted.high)
    assert other.loss is None
