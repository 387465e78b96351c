"""The whole run in plain Python: no orchestrator, no tracker."""

from pathlib import Path

import polars as pl
import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.influence import round_robin_top_k
from clusterucb_core.separation import shuffles_per_row
from clusterucb_core.stages.accounting import selection_cost
from clusterucb_core.stages.drawn import (
    read_certificate,
    read_pulls,
    read_scores,
    read_selected,
    read_separation,
)
from clusterucb_core.stages.features import read_features
from clusterucb_core.stages.intake import candidate_exclusions, candidate_ids, read_target
from clusterucb_core.store import (
    open_catalog,
    pool_sample_ids,
    selection_comparisons,
    selection_evaluations,
)

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


def test_the_scores_of_all_that_was_drawn_are_kept_under_the_names_of_the_subtasks(finished):
    draws = finished.chosen.periods[0].draws
    pulls, scores, selected = read_pulls(draws), read_scores(draws), read_selected(draws)
    target = read_target(finished.inputs.target)
    names = sorted({row.subtask for row in target.validation})
    assert scores.columns == ["sample_id", *names]
    assert scores["sample_id"].to_list() == pulls["sample_id"].to_list()
    largest = scores.select(names).to_numpy().max(axis=1)
    assert pulls["reward"].to_numpy().tolist() == largest.tolist()
    first = scores.row(by_predicate=pl.col("sample_id") == selected["sample_id"][0], named=True)
    assert first[selected["subtask"][0]] == selected["influence"][0]


def test_the_target_is_checked_once_against_its_shuffled_rows_whose_gradients_are_counted(finished):
    period = finished.chosen.periods[0]
    rows = len(read_target(finished.inputs.target).validation)
    found = read_separation(period.draws)
    assert found.rows == rows
    assert found.shuffles == shuffles_per_row(rows)
    cost = selection_cost(period.spec, period.draws, finished.plan.workspace, finished.plan.run_id)
    assert cost.target_computed == rows * len(period.spec.spaces) + rows * found.shuffles
    with open_catalog(finished.plan.workspace.catalog, read_only=True) as con:
        assert con.execute("SELECT separation_p FROM selections").fetchall() == [(found.p,)]
    assert finished.summaries[0].separation_p == found.p


def test_subtasks_take_turns_in_a_selection_that_is_certified_for_recall(plain, config, tmp_path):
    changes = (*SMALL, "selection.audit_fraction=0.1", "selection.aggregate=round_robin")
    run = plain.run_plain(config, tmp_path, *changes)
    draws = run.chosen.periods[0].draws
    scores, selected = read_scores(draws), read_selected(draws)
    names = scores.columns[1:]
    picked = round_robin_top_k(scores.select(names).to_numpy(), 15)
    assert selected["sample_id"].to_list() == scores["sample_id"].gather(picked).to_list()
    assert selected["subtask"].to_list() == [names[turn % len(names)] for turn in range(15)]
    certificate = read_certificate(draws)
    assert 0.0 <= certificate.recall_low <= certificate.recall <= certificate.recall_high <= 1.0
    assert certificate.captured is None
    assert run.summaries[0].estimated_recall == certificate.recall


def test_validation_rows_take_turns_and_full_gradients_hold_their_whole_round_robin(plain, config, tmp_path):
    changes = ("pool.max_samples=300", "mode=dynamic", "warmup.steps=3", "finetune.epochs=1")
    run = plain.run_plain(config, tmp_path, *changes, "selection.aggregate=round_robin_validation")
    rows = len(read_target(run.inputs.target).validation)
    scores = read_scores(run.chosen.periods[0].draws)
    assert scores.columns[1:] == [f"row {number}" for number in range(1, rows + 1)]
    assert scores.height == len(candidate_ids(run.inputs.candidates))
    assert (run.summaries[0].captured_influence, run.summaries[0].recall) == (pytest.approx(1.0), 1.0)


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
@pytest.mark.parametrize(
    "mode",
    [
        ("warmup.epochs=2",),
        pytest.param(
            ("mode=dynamic", "warmup.steps=3"),
            marks=pytest.mark.xfail(
                strict=True, reason="captures 0.685 of an untrained model's influence, ucb_beta 0.731"
            ),
        ),
    ],
)
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


def test_the_catalog_holds_the_selection_against_its_baselines(plain, config, tmp_path):
    changes = (*SMALL, "warmup.epochs=1", "evaluate.tasks=[target_perplexity]", "evaluate.limit=5")
    run = plain.run_plain(config, tmp_path, *changes, baselines=("random:0", "random:1"))
    with open_catalog(run.plan.workspace.catalog, read_only=True) as con:
        found = selection_comparisons(con, run.result.selection_version)
        recorded = selection_evaluations(con, run.result.selection_version)
    losses = {subject.subject: subject.loss for subject in run.summaries}
    (chance,) = found.filter(baseline="random", metric="loss").to_dicts()
    expected = losses["selection"] - (losses["random:0"] + losses["random:1"]) / 2
    assert chance["difference"] == pytest.approx(expected, abs=1e-6)
    assert chance["low"] < chance["difference"] < chance["high"]
    assert (chance["n"], chance["n_seeds"], chance["higher_is_better"]) == (5, 2, False)
    assert set(found["metric"]) == {"loss", "log_perplexity"}
    assert set(found["baseline"]) == {"random", "random:0", "random:1", "zero_shot"}
    assert set(recorded.filter(subject="random")["metric"]) >= {"loss", "perplexity"}
