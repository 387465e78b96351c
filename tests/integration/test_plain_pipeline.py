"""The whole run in plain Python: no orchestrator, no tracker."""

from pathlib import Path

import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.stages.accounting import selection_cost
from clusterucb_core.stages.drawn import read_pulls, read_selected
from clusterucb_core.stages.features import read_features
from clusterucb_core.stages.intake import candidate_exclusions, candidate_ids
from clusterucb_core.store import open_catalog, pool_sample_ids

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


SMALL = ("pool.max_samples=300", "warmup.epochs=2", "finetune.epochs=1")


@pytest.fixture(scope="module")
def finished(plain, config, tmp_path_factory):
    return plain.run_plain(config, tmp_path_factory.mktemp("home"), *SMALL)


def test_the_budget_is_exact_and_the_best_drawn_are_selected(finished):
    draws = finished.chosen.periods[0].draws
    pulls, selected = read_pulls(draws), read_selected(draws)
    assert len(pulls) == 75
    assert pulls["sample_id"].n_unique() == 75
    assert set(pulls["kind"]) == {"cold_start", "draw"}
    best = pulls["reward"].sort(descending=True).head(15).to_list()
    assert selected["influence"].to_list() == best
    assert selected["rank"].to_list() == list(range(1, 16))


def test_the_clustering_pass_and_the_draws_are_what_is_paid_for(finished):
    period = finished.chosen.periods[0]
    cost = selection_cost(period.spec, period.draws, finished.plan.workspace, finished.plan.run_id)
    candidates = len(candidate_ids(finished.inputs.candidates))
    assert cost.computed == candidates + 75
    assert cost.reused == 0
    assert cost.full_evaluations == 2 * candidates
    assert finished.result.work.gradient_evaluations == candidates + 75


def test_a_repeat_computes_nothing_and_returns_the_same_version(plain, config, finished):
    again = plain.run_plain(config, Path(finished.plan.workspace.home), *SMALL)
    assert again.result.versions == finished.result.versions
    assert again.result.work.gradient_evaluations == 0
    assert again.result.work.trainings == 0


def test_the_shard_count_changes_no_byte_of_a_selection(plain, config, finished, tmp_path):
    other = plain.run_plain(config, tmp_path, *SMALL, "execution.shard_samples=7")
    one, two = (read_pulls(run.chosen.periods[0].draws) for run in (finished, other))
    assert one.equals(two)
    space = finished.chosen.periods[0].spec.spaces[0]
    ids = candidate_ids(finished.inputs.candidates)
    found = [read_features(space, ids, run.plan.workspace).tobytes() for run in (finished, other)]
    assert found[0] == found[1]


@pytest.mark.parametrize("policy", ["linucb", "ucb_beta"])
def test_an_audit_inside_the_budget_certifies_the_version(plain, config, tmp_path, policy):
    changes = (*SMALL, "selection.audit_fraction=0.1", f"selection.policy={policy}")
    run = plain.run_plain(config, tmp_path, *changes, baselines=("full",))
    pulls = read_pulls(run.chosen.periods[0].draws)
    assert pulls["kind"].to_list()[-31:] == ["draw", *["audit"] * 30]
    assert pulls["sample_id"].n_unique() == len(pulls) == 75
    with open_catalog(run.plan.workspace.catalog, read_only=True) as con:
        columns = "selection_version, gradient_evaluations, recall_low, estimated_recall, recall_high"
        (found,) = con.execute(f"SELECT {columns} FROM selections").fetchall()
        kinds = dict(con.execute("SELECT kind, count(*) FROM pulls GROUP BY kind").fetchall())
    assert kinds["audit"] == 30
    assert found[0] == run.result.versions[0]
    assert found[1] == len(candidate_ids(run.inputs.candidates)) + 75
    truth = run.summaries[0].recall
    assert found[2] <= truth <= found[4]
    assert found[2] <= found[3] <= found[4]


@pytest.mark.parametrize("policy", ["linucb", "ucb_beta"])
def test_an_early_stop_leaves_budget_unspent_and_is_audited_all_the_same(plain, config, tmp_path, policy):
    changes = ("selection.early_stop=0.9", "selection.budget_fraction=0.9", "selection.audit_fraction=0.1")
    few = ("clusters.k=4", "selection.round_samples=4", f"selection.policy={policy}")
    run = plain.run_plain(config, tmp_path, *SMALL, *changes, *few)
    kinds = read_pulls(run.chosen.periods[0].draws)["kind"]
    with open_catalog(run.plan.workspace.catalog, read_only=True) as con:
        columns = "budget_samples, unspent_samples, gradient_evaluations, estimated_recall"
        ((budget, unspent, gradients, recall),) = con.execute(f"SELECT {columns} FROM selections").fetchall()
    assert (budget, kinds.to_list()[-30:], (kinds == "audit").sum()) == (270, ["audit"] * 30, 30)
    assert 0 < unspent == 270 - len(kinds)
    assert gradients == len(candidate_ids(run.inputs.candidates)) + len(kinds)
    assert 0 < recall <= 1


def test_dynamic_mode_selects_again_before_each_epoch(plain, config, tmp_path):
    run = plain.run_plain(
        config, tmp_path, "pool.max_samples=300", "mode=dynamic", "warmup.steps=3", "finetune.epochs=2"
    )
    first, second = (period.draws for period in run.chosen.periods)
    assert len(run.result.versions) == 2
    assert len(read_pulls(first)) == 0
    assert len(read_pulls(second)) == 75
    assert len(read_selected(first)) == len(read_selected(second)) == 15


@pytest.mark.slow
@pytest.mark.parametrize("mode", [("warmup.epochs=2",), ("mode=dynamic", "warmup.steps=3")])
def test_side_information_captures_more_at_the_same_budget_than_the_rule_of_the_paper(
    plain, config, tmp_path, mode
):
    captured = {}
    for policy in ("linucb", "ucb_beta"):
        changes = (
            "pool.max_samples=300",
            "clusters.k=8",
            "finetune.epochs=2",
            "selection.budget_fraction=0.1",
        )
        run = plain.run_plain(
            config, tmp_path, *changes, *mode, f"selection.policy={policy}", baselines=("full",)
        )
        captured[policy] = run.summaries[0].captured_influence
        assert len(read_pulls(run.chosen.periods[-1].draws)) == 30
    assert captured["linucb"] > captured["ucb_beta"] + 0.1


def test_a_leak_stays_in_the_pool_but_is_never_drawn(plain, config, tmp_path):
    run = plain.run_plain(config, tmp_path, "selection.policy=random", "finetune.epochs=1")
    leaks = [item for item in candidate_exclusions(run.inputs.candidates) if item.stage == "leak"]
    assert [item.reason for item in leaks] == ["same_prompt", "same_prompt"]
    drawable = set(candidate_ids(run.inputs.candidates))
    assert not drawable & {item.sample_id for item in leaks}
    with open_catalog(run.plan.workspace.catalog, read_only=True) as con:
        assert {item.sample_id for item in leaks} <= set(pool_sample_ids(con, 1))
