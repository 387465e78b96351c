"""Policies replayed on full gradients: the same as run for real, at no gradient of their own."""

from pathlib import Path

import polars as pl
import pytest

from clusterucb_core.comparison import comparison_spec
from clusterucb_core.config import load_config
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.planning import plan_comparison
from clusterucb_core.selection import POLICY_NAMES
from clusterucb_core.stages.accounting import selection_cost
from clusterucb_core.stages.comparison import (
    REPLAYS,
    Setting,
    impossible_settings,
    read_replays,
    run_comparison,
)
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.stages.summary import work_since

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = ("pool.max_samples=300", "finetune.epochs=2")
MODES = {
    "static": (*SMALL, "warmup.epochs=2", "selection.aggregate=round_robin_validation"),
    "dynamic": (*SMALL, "mode=dynamic", "warmup.steps=3", "selection.audit_fraction=0.04"),
}
GRID = "compare={budget_fractions: [0.05, 0.15, 0.25], seeds: 2}"


class Compared:
    """A run by the rule of the paper beside full selection, then a comparison in the same state folder."""

    def __init__(self, plain, config: Path, home: Path, mode: str) -> None:
        self.mode = mode
        self.run = plain.run_plain(config, home, *MODES[mode], baselines=("full",))
        plan = plan_comparison(*load_config(config, [*MODES[mode], GRID]), home=home)
        (inputs,) = plain.prepare(plan)
        oracle = plain.select(plan, inputs, subject="full")
        self.spec = comparison_spec(plan, oracle.periods, inputs.validation_tokens)
        self.arguments = (plan.workspace, plan.execution)
        self.ref = run_comparison(self.spec, *self.arguments)
        self.replays = read_replays(self.ref)

    def computed(self) -> int:
        spaces = [space for period in (*self.spec.shared, *self.spec.periods) for space in period.spaces]
        return work_since(0.0, spaces, [], self.run.plan.workspace).gradient_evaluations

    def row(self, policy: str, budget: float | None, seed: int = 0) -> dict[str, object]:
        same_budget = pl.col("budget_fraction").eq_missing(pl.lit(budget, pl.Float64))
        found = self.replays.filter((pl.col("policy") == policy) & same_budget & (pl.col("seed") == seed))
        return found.row(0, named=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module", params=list(MODES))
def compared(request, plain, config, tmp_path_factory):
    return Compared(plain, config, tmp_path_factory.mktemp("home"), request.param)


def test_a_replay_is_what_the_same_settings_draw_for_real(compared):
    row, real = compared.row("ucb_beta", 0.25), compared.run.summaries[0]
    assert (row["captured_influence"], row["recall"]) == (real.captured_influence, real.recall)
    assert row["draws"] == 75
    periods = compared.run.chosen.periods
    paid = [selection_cost(p.spec, p.draws, compared.run.plan.workspace, "") for p in periods]
    assert row["gradient_evaluations"] == sum(cost.reused for cost in paid)
    assert row["gradient_cost"] == row["gradient_evaluations"] / sum(cost.full_evaluations for cost in paid)


def test_a_grid_of_settings_computes_no_gradient_beyond_full_selection(compared):
    # six policies at three budgets, beside an audit only linucb at the lowest; two seeds, as of random; full
    settings = {"static": 6 * 3, "dynamic": 6 * 2 + 1}[compared.mode]
    assert len(compared.replays) == 2 * settings + 2 + 1
    full = 2 * len(candidate_ids(compared.run.inputs.candidates))
    assert compared.run.result.work.gradient_evaluations == compared.computed() == full


def test_full_is_the_measure_and_random_draws_nothing(compared):
    full, chance = compared.row("full", None), compared.row("random", None)
    shares = ("captured_influence", "recall", "gradient_cost", "flops_share")
    assert [full[name] for name in shares] == [1.0] * 4
    assert (chance["draws"], chance["gradient_evaluations"], chance["selection_flops"]) == (0, 0, 0.0)
    assert chance["recall"] < 0.5


def test_a_budget_below_the_cold_start_is_left_out_with_its_reason(compared):
    impossible = impossible_settings(compared.ref)
    clusters = [name for name in POLICY_NAMES if name not in ("linucb", "random", "full")]
    poor = {Setting(policy=name, budget_fraction=0.05) for name in clusters}
    # 15 samples are enough for 12 clusters, but not less an audit of 12
    assert set(impossible) == (poor if compared.mode == "dynamic" else set())
    assert all("below the cold start of" in reason for reason in impossible.values())
    assert compared.row("linucb", 0.05)["draws"] == 15


def test_an_audit_inside_the_budget_gives_every_replay_a_certificate(compared):
    drawn = compared.replays.filter(pl.col("budget_fraction").is_not_null())
    audited = compared.mode == "dynamic"
    assert drawn["covered"].is_not_null().to_list() == [audited] * len(drawn)
    held = (pl.col("recall_low") <= pl.col("recall")) & (pl.col("recall") <= pl.col("recall_high"))
    assert drawn.select(held).to_series().equals(drawn["covered"], check_names=False)


def test_the_first_selection_of_dynamic_mode_is_paid_for_but_not_compared(compared):
    assert compared.replays["period"].unique().to_list() == ([2] if compared.mode == "dynamic" else [1])
    n = len(candidate_ids(compared.run.inputs.candidates))
    assert compared.row("linucb", 0.15, seed=1)["gradient_evaluations"] == n + 45


def test_a_comparison_made_again_has_the_same_bytes(compared):
    path = Path(compared.ref.path)
    before = (path / REPLAYS).read_bytes()
    assert run_comparison(compared.spec, *compared.arguments) == compared.ref
    path.rename(path.with_name("moved"))
    again = Path(run_comparison(compared.spec, *compared.arguments).path)
    assert (again / REPLAYS).read_bytes() == before
