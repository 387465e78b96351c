import pytest

from clusterucb_core.errors import BudgetError
from clusterucb_core.selection import SelectionSettings, baseline_seed
from clusterucb_core.stages.comparison import (
    CompareSettings,
    Setting,
    check_comparison,
    compared_settings,
    draw_seed,
    repetitions,
    setting_selection,
)


def named(settings):
    return [(setting.policy, setting.budget_fraction) for setting in compared_settings(settings)]


def test_without_policies_all_bandit_policies_are_compared_and_random_and_full_stand_beside_them():
    found = named(CompareSettings(budget_fractions=(0.1,)))
    policies = ["ucb_beta", "ucb1", "threshold_hard", "threshold_normal", "uniform", "linucb"]
    assert found == [*((policy, 0.1) for policy in policies), ("random", None), ("full", None)]


def test_a_policy_or_budget_named_twice_is_compared_once():
    settings = CompareSettings(policies=("ucb1", "full", "ucb1"), budget_fractions=(0.2, 0.1, 0.2))
    assert named(settings) == [("ucb1", 0.1), ("ucb1", 0.2), ("random", None), ("full", None)]


def test_a_setting_changes_policy_and_budget_and_nothing_else():
    selection = SelectionSettings(beta=2.0, budget_fraction=0.3)
    found = setting_selection(selection, Setting(policy="ucb1", budget_fraction=0.1))
    assert found == selection.model_copy(update={"policy": "ucb1", "budget_fraction": 0.1})
    assert setting_selection(selection, Setting(policy="full")).budget_fraction == 0.3


def test_first_repetitions_draw_as_a_run_and_random_ones_as_its_baselines():
    policy, chance = Setting(policy="ucb1", budget_fraction=0.1), Setting(policy="random")
    assert draw_seed(7, policy, 0) == 7
    assert len({draw_seed(7, policy, number) for number in range(5)}) == 5
    assert [draw_seed(7, chance, number) for number in range(3)] == [baseline_seed(7, n) for n in range(3)]


def test_full_selection_is_not_repeated():
    assert len(repetitions(Setting(policy="full"), 3)) == 1
    assert len(repetitions(Setting(policy="random"), 3)) == 3


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ({"audit_fraction": 0.1}, "ucb_beta: selection.audit_fraction=0.1 is not below budget_fraction=0.1"),
        ({"top_fraction": 0.15}, "ucb_beta: selection.top_fraction=0.15 is above budget_fraction=0.1"),
    ],
)
def test_a_budget_that_holds_no_selection_or_no_audit_is_refused(selection, wanted):
    settings = CompareSettings(budget_fractions=(0.2, 0.1))
    with pytest.raises(BudgetError, match=f"^compare.budget_fractions, {wanted}"):
        check_comparison(settings, SelectionSettings(**selection))
