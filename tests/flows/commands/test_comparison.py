import json
import sys
from types import SimpleNamespace

import polars as pl
import pytest

from clusterucb_core.comparison import CHART, REPLAYS, TABLE, ComparisonResult
from clusterucb_core.errors import InvalidPool
from clusterucb_core.estimate import ComparisonEstimate
from clusterucb_core.stages.comparison_summary import SettingSummary
from clusterucb_core.stages.summary import Work
from flows.commands.comparison import expected_work

UCB = SettingSummary(
    target="adding",
    policy="ucb1",
    budget_fraction=0.1,
    replays=4,
    captured_influence=0.75,
    captured_se=0.0125,
    captured_by_period=(0.7, 0.8),
    recall=0.5,
    recall_se=None,
    gradient_evaluations=240.0,
    gradient_cost=0.4,
    flops_share=0.375,
    covered=0.75,
)
POOR = SettingSummary(target="adding", policy="ucb1", budget_fraction=0.05, note="below the cold start")


@pytest.fixture
def made(tmp_path):
    """Make a result whose files exist."""

    def make(**changes):
        folder = tmp_path / "kept"
        folder.mkdir(exist_ok=True)
        pl.DataFrame({"policy": ["ucb1"] * 4, "period": [2, 3, 2, 3]}).write_csv(folder / REPLAYS)
        (folder / TABLE).write_text("policy\n")
        (folder / CHART).write_bytes(b"\x89PNG")
        fields = {
            "run_id": "run",
            "targets": ("adding",),
            "mode": "dynamic",
            "n_samples": 200,
            "periods": (2, 3),
            "seeds": 2,
            "audit_fraction": 0.04,
            "settings": (UCB, POOR),
            "folder": str(folder),
            "work": Work(gradient_evaluations=600, trainings=4),
            "mlflow_run_id": None,
            "seconds": 1.25,
        }
        return ComparisonResult(**{**fields, **changes})

    return make


@pytest.fixture
def flow(monkeypatch):
    """Put a function in the place of the flow."""

    def replace(run):
        monkeypatch.setitem(sys.modules, "flows.comparison", SimpleNamespace(run_comparison=run))

    return replace


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("compare.policies=[ucb_bta]", "did you mean 'ucb_beta'?"),
        ("compare.budget_fractions=[0.03]", "compare.budget_fractions, ucb_beta: selection.audit_fraction"),
        ("compare={budget_fractions: [0.1], policies: [ucb1]}", None),
        ("selection={top_fraction: 0.3}", "only drawn samples can be selected; raise the budget"),
        ("compare.max_sample=3", "did you mean max_samples?"),
        ("execution.runner=trains", "threads, processes, ray"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(call, flow, made, config_file, override, wanted):
    flow(lambda *_: made())
    outcome = call("compare", config_file, "--set", override)
    assert outcome.code == (0 if wanted is None else 2)
    if wanted is not None:
        assert wanted in outcome.err
        assert outcome.out == ""


def test_the_cost_is_told_before_it_is_spent(call, flow, made, config_file):
    flow(lambda *_: made())
    outcome = call("compare", config_file, "--set", "compare={max_samples: 150, seeds: 2}")
    assert "at most 450 gradient evaluations: 150 samples at 3 checkpoints" in outcome.err
    # 6 policies at 3 budgets and random, twice each, and full once
    assert "39 replays on them compute none" in outcome.err


def test_fine_tuning_is_told_with_the_gradients_that_it_takes():
    few = ComparisonEstimate(
        n_samples=9,
        n_checkpoints=2,
        gradient_evaluations=18,
        n_replays=5,
        n_selections=5,
        selection_evaluations=6,
    )
    assert len(expected_work(few.model_copy(update={"n_selections": 0}))) == 1
    assert expected_work(few)[1].startswith("compare.finetune: 5 selections")
    assert "at most 6 gradient evaluations of their own" in expected_work(few)[1]


def test_the_result_is_a_table_and_the_places_of_its_files(call, flow, made, config_file):
    flow(lambda *_: made())
    outcome = call("compare", config_file)
    assert outcome.code == 0
    (row,) = [line for line in outcome.out.splitlines() if "0.750" in line]
    cells = "ucb1 10.0 % 0.750 ± 0.013 0.500 240 40.0 % 37.5 % 0.70 0.80 75.0 %"
    assert row.split() == cells.split()
    assert "over 2 seeds and the re-selections of periods 2, 3" in outcome.out
    assert "an audit of 4.0 % of the pool is part of each budget" in outcome.out
    assert "200 samples, 4 replays; this call computed 600 gradient evaluations, 4 trainings" in outcome.out
    assert "adding, ucb1 at 5.0 %: below the cold start" in outcome.err
    assert f"{made().folder}/{CHART}" in outcome.out


def test_a_loss_is_shown_where_one_was_measured(call, flow, made, config_file):
    tuned = UCB.model_copy(update={"loss": 2.0, "loss_low": 1.5, "loss_high": 2.5})
    flow(lambda *_: made(settings=(tuned,), mode="static", periods=(1,), audit_fraction=0.0))
    out = call("compare", config_file).out
    assert "2.0000 [1.5000, 2.5000]" in out
    assert "no audit is part of each budget" in out
    assert "by period" not in out


def test_each_target_has_a_table_of_its_own(call, flow, made, config_file):
    other = UCB.model_copy(update={"target": "dates", "captured_influence": 0.25})
    flow(lambda *_: made(targets=("adding", "dates"), settings=(UCB, other)))
    lines = call("compare", config_file).out.splitlines()
    first, second = lines.index("target adding"), lines.index("target dates")
    assert any("0.750" in line for line in lines[first:second])
    assert any("0.250" in line for line in lines[second:])


def test_json_is_everything_and_out_is_where_the_files_lie(call, flow, made, config_file, tmp_path):
    flow(lambda *_: made())
    outcome = call("compare", config_file, "--json", "--out", tmp_path / "out")
    found = json.loads(outcome.out)
    assert found["folder"] == str(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {TABLE, CHART, REPLAYS}
    assert [line["captured_influence"] for line in found["settings"]] == [0.75, None]
    assert len(found["replays"]) == 4


def test_a_finished_comparison_is_returned_without_the_flow(call, flow, made, config_file, monkeypatch):
    flow(lambda *_: pytest.fail("the flow was started"))
    monkeypatch.setattr("clusterucb_core.comparison.finished_comparison", lambda _: made())
    outcome = call("compare", config_file)
    assert outcome.code == 0
    assert "gradient evaluations" in outcome.out
    assert "full selection takes" not in outcome.err


def test_flags_reach_the_flow(call, flow, made, config_file):
    seen = []
    flow(lambda config, execution: seen.append((config, execution)) or made())
    call("compare", config_file, "--runner", "processes", "--set", "compare.seeds=7")
    config, execution = seen[0]
    assert (execution.runner, config.compare.seeds) == ("processes", 7)


def test_a_comparison_that_fails_ends_with_1(call, flow, config_file):
    def fail(*_):
        raise InvalidPool("row 3 is lost")

    flow(fail)
    outcome = call("compare", config_file)
    assert outcome.code == 1
    assert "row 3 is lost" in outcome.err
