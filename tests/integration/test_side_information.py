"""Runs whose clusters and side information take no gradient: what they compute, and what that costs."""

from pathlib import Path

import numpy as np
import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.lm.tokens import open_tokens
from clusterucb_core.stages.accounting import selection_cost
from clusterucb_core.stages.drawn import read_pulls, read_selected
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.intake import candidate_ids

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
PROXY = TinyModelRecipe(vocabulary=500, hidden=8, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = ("pool.max_samples=300", "warmup.epochs=2", "warmup.steps=3", "finetune.epochs=2", "clusters.k=6")
LINUCB = ("selection.policy=linucb", "selection.audit_fraction=0.04")
BY_STATES = ("clusters.features=hidden_state", "selection.context=hidden_state")
BUDGET = 75


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("proxy"), recipe=PROXY).config.parent / "model"


def costs(run):
    """Return what each period of the selection cost."""
    plan = run.plan
    return [
        selection_cost(period.spec, period.draws, plan.workspace, plan.run_id)
        for period in run.chosen.periods
    ]


def n_tokens(ref, ids):
    table = open_tokens(ref)
    return int(sum(table.lengths[table.rows[sample]] for sample in ids))


def gradients_on_disk(run):
    """Count every pool gradient in the store of the run."""
    spaces = {space for period in run.chosen.periods for space in period.spec.spaces}
    return sum(len(open_store(space, run.plan.workspace).known) for space in spaces)


@pytest.fixture(scope="module")
def static(plain, config, tmp_path_factory):
    return plain.run_plain(config, tmp_path_factory.mktemp("static"), *SMALL, *LINUCB, *BY_STATES)


def test_a_static_run_by_hidden_states_computes_the_budget_at_each_checkpoint_and_no_more(static):
    (cost,) = costs(static)
    assert cost.computed == gradients_on_disk(static) == 2 * BUDGET
    assert static.result.work.gradient_evaluations == 2 * BUDGET
    assert cost.by_stage["selection"]["gradient_evaluations"] == 2 * BUDGET
    assert cost.by_stage["clustering"]["gradient_evaluations"] == 0


def test_one_forward_pass_serves_clusters_and_side_information(static):
    (cost,), period = costs(static), static.chosen.periods[0]
    every, size = candidate_ids(static.inputs.candidates), static.plan.model.n_parameters
    drawn = read_pulls(period.draws)["sample_id"].to_list()
    forward = 2 * size * n_tokens(static.inputs.tokens, every)
    gradients = 2 * 4 * size * n_tokens(static.inputs.tokens, drawn)
    assert set(cost.by_stage) == {"clustering", "selection"}
    assert cost.by_stage["clustering"]["flops"] == pytest.approx(forward)
    assert cost.by_stage["selection"]["flops"] == pytest.approx(gradients)
    assert cost.flops == pytest.approx(forward + gradients)
    assert cost.full_flops == pytest.approx(2 * 4 * size * n_tokens(static.inputs.tokens, every))


def test_a_repeat_by_hidden_states_computes_nothing(plain, config, static):
    home = Path(static.plan.workspace.home)
    again = plain.run_plain(config, home, *SMALL, *LINUCB, *BY_STATES)
    assert again.result.versions == static.result.versions
    assert (again.result.work.gradient_evaluations, again.result.work.trainings) == (0, 0)


def test_the_shard_count_changes_no_pull_by_hidden_states(plain, config, static, tmp_path):
    other = plain.run_plain(config, tmp_path, *SMALL, *LINUCB, *BY_STATES, "execution.shard_samples=17")
    one, two = (read_pulls(run.chosen.periods[0].draws) for run in (static, other))
    assert one.equals(two)


def test_every_period_of_a_dynamic_run_by_hidden_states_draws_the_budget(plain, config, tmp_path):
    run = plain.run_plain(config, tmp_path, *SMALL, *LINUCB, *BY_STATES, "mode=dynamic")
    first, second = costs(run)
    assert [len(read_pulls(period.draws)) for period in run.chosen.periods] == [BUDGET, BUDGET]
    assert [len(read_selected(period.draws)) for period in run.chosen.periods] == [15, 15]
    assert (first.computed, second.computed) == (BUDGET, BUDGET)
    assert run.result.work.gradient_evaluations == gradients_on_disk(run) == 2 * BUDGET
    assert set(first.by_stage) == {"clustering", "selection"}
    assert set(second.by_stage) == {"selection"}


def test_clusters_of_hidden_states_save_the_gradient_pass_for_a_cluster_policy_too(plain, config, tmp_path):
    changes = ("selection.policy=ucb_beta", "clusters.features=hidden_state", "mode=dynamic")
    run = plain.run_plain(config, tmp_path, *SMALL, *changes, "finetune.epochs=1")
    (cost,) = costs(run)
    assert cost.computed == len(read_pulls(run.chosen.periods[0].draws)) == BUDGET


@pytest.mark.parametrize("policy", ["linucb", "ucb_beta"])
def test_subtasks_take_turns_by_hidden_states_too(plain, config, tmp_path, policy):
    changes = (*BY_STATES, "selection.aggregate=round_robin", "finetune.epochs=1")
    run = plain.run_plain(config, tmp_path, *SMALL, *changes, f"selection.policy={policy}")
    (cost,) = costs(run)
    assert cost.computed == gradients_on_disk(run) == 2 * len(read_pulls(run.chosen.periods[0].draws))
    assert len(read_selected(run.chosen.periods[0].draws)) == 15


def test_linucb_clusters_by_its_context_and_takes_no_pass_for_clusters(plain, config, tmp_path):
    run = plain.run_plain(config, tmp_path, *SMALL, *LINUCB, "selection.context=hidden_state", "mode=dynamic")
    first, second = costs(run)
    assert (first.computed, second.computed) == (BUDGET, BUDGET)
    assert run.chosen.periods[0].spec.first_space == run.chosen.periods[0].spec.context.space


def test_errors_of_the_head_are_side_information_of_the_same_pass(plain, config, tmp_path):
    run = plain.run_plain(config, tmp_path, *SMALL, *LINUCB, "selection.context=output_error")
    (cost,) = costs(run)
    assert cost.computed == 2 * BUDGET
    assert run.chosen.periods[0].spec.context.parts == ("outer", "error")


def test_a_proxy_gives_side_information_in_its_own_tokens_and_at_its_own_price(
    plain, config, proxy, tmp_path
):
    changes = ("selection.context=proxy", f"selection.proxy_model={proxy}")
    run = plain.run_plain(config, tmp_path, *SMALL, *LINUCB, *changes)
    tokens = run.inputs.proxy
    every = candidate_ids(run.inputs.candidates)
    assert n_tokens(tokens.pool, every) != n_tokens(run.inputs.tokens, every)
    assert tokens.model.n_parameters < run.plan.model.n_parameters
    (cost,) = costs(run)
    assert cost.computed == 2 * BUDGET
    flops = 2 * tokens.model.n_parameters * n_tokens(tokens.pool, every)
    assert cost.by_stage["clustering"] == {"gradient_evaluations": 0, "flops": pytest.approx(flops)}
    context = run.chosen.periods[0].spec.context
    assert context.space.checkpoint is None
    assert open_store(context.space, run.plan.workspace).known >= set(every)


def test_the_context_predicts_the_rewards_it_has_not_seen(static):
    from clusterucb_core.stages.contexts import side_information

    period = static.chosen.periods[0]
    pulls = read_pulls(period.draws)
    side = side_information(
        period.spec.context,
        pulls["sample_id"].to_list(),
        period.spec.target,
        workspace=static.plan.workspace,
        aggregate="max",
    )
    assert np.isfinite(side.context).all()
    assert np.corrcoef(side.prior.max(axis=1), pulls["reward"])[0, 1] > 0.2


def test_gradients_come_with_the_hidden_states_of_their_own_forward_pass(plain, config, tmp_path):
    from clusterucb_core.stages.contexts import side_information

    run = plain.run_plain(config, tmp_path, *SMALL, *LINUCB, "selection.context=gradient")
    spec, workspace = run.chosen.periods[0].spec, run.plan.workspace
    every = candidate_ids(run.inputs.candidates)
    assert spec.context.beside.space.kind == "states"
    states, gradients = (
        open_store(spec.context.beside.space, workspace),
        open_store(spec.first_space, workspace),
    )
    # shard by shard beside the gradients, and no pass of their own
    rows = {tuple(shard.places) for shard in gradients.shards.values()}
    assert {tuple(shard.places) for shard in states.shards.values()} >= rows
    assert states.known >= set(every)
    (cost,) = costs(run)
    assert cost.computed == len(every) + BUDGET
    assert sum(stage["gradient_evaluations"] for stage in cost.by_stage.values()) == cost.computed
    keywords = {"workspace": workspace, "aggregate": "max"}
    both = side_information(spec.context, every, spec.target, **keywords)
    alone = side_information(spec.context.beside, every, spec.target, **keywords)
    width = states.dim
    block = both.context[:, -width:]
    np.testing.assert_allclose(block, alone.context, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both.context[:, :-width].var(axis=0).sum(), 1.0, rtol=1e-3)
    first, other = both.priors
    np.testing.assert_allclose(other.mean(axis=0), first.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(other.std(axis=0), first.std(axis=0), rtol=1e-6)
    for column in range(first.shape[1]):
        np.testing.assert_allclose(np.corrcoef(other[:, column], alone.prior[:, column])[0, 1], 1.0)
