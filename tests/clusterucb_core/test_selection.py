import pytest
from pydantic import ValidationError

from clusterucb_core.bandit.policies import (
    POLICY_KINDS,
    LinUcb,
    ThresholdHard,
    ThresholdNormal,
    Ucb1,
    UcbBeta,
    Uniform,
)
from clusterucb_core.clustering import ClusterSettings
from clusterucb_core.errors import BudgetError, InvalidConfig
from clusterucb_core.selection import (
    POLICY_NAMES,
    SelectionSettings,
    bandit_policy,
    check_selection,
    cold_start_of,
    is_bandit,
    known_policy,
    needs_gradient_pass,
    share_of,
)


@pytest.mark.parametrize(
    ("fraction", "n", "count"),
    [
        (0.2, 6000, 1200),
        (0.05, 6000, 300),
        (0.1, 30, 3),
        (0.29, 100, 29),  # 0.29 x 100 is 28.999999999999996 in floating point
        (0.57, 100, 57),
        (0.05, 19, 0),
        (0.05, 20, 1),
        (0.05, 39, 1),
        (1.0, 7, 7),
        (0.0, 7, 0),
        (1 / 3, 3, 1),
        (0.5, 0, 0),
    ],
)
def test_a_share_is_rounded_down_but_for_the_noise_of_floating_point(fraction, n, count):
    assert share_of(fraction, n) == count


def test_the_policies_of_the_contract_are_known():
    contract = "ucb_beta ucb1 threshold_hard threshold_normal uniform linucb random full"
    assert set(POLICY_NAMES) == set(contract.split())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("ucb_beta", UcbBeta(beta=2.5)),
        ("ucb1", Ucb1()),
        ("threshold_hard", ThresholdHard(top_share=0.4)),
        ("threshold_normal", ThresholdNormal(top_share=0.4)),
        ("uniform", Uniform()),
    ],
)
def test_a_policy_takes_the_settings_that_it_reads(policy, expected):
    assert bandit_policy(SelectionSettings(policy=policy, beta=2.5, top_share=0.4)) == expected
    assert is_bandit(policy)


def test_linucb_takes_its_share_of_chance_and_no_cold_start():
    settings = SelectionSettings(policy="linucb", explore_fraction=0.3)
    assert bandit_policy(settings) == LinUcb(explore_fraction=0.3)
    assert is_bandit("linucb")
    assert (cold_start_of(settings), cold_start_of(SelectionSettings(policy="ucb_beta"))) == (0.0, 0.05)


@pytest.mark.parametrize("policy", ["random", "full"])
def test_what_draws_under_no_budget_says_so(policy):
    assert not is_bandit(policy)
    with pytest.raises(InvalidConfig, match=f"selection.policy={policy} draws under no budget"):
        bandit_policy(SelectionSettings(policy=policy))


def test_an_unknown_policy_lists_the_known_and_the_near():
    with pytest.raises(
        ValueError, match=r"unknown policy 'treshold_hard'; did you mean 'threshold_hard'\? known: "
    ):
        known_policy("treshold_hard")
    with pytest.raises(ValidationError, match="unknown policy 'x'; known: ucb_beta, ucb1"):
        SelectionSettings(policy="x")


@pytest.mark.parametrize("kind", POLICY_KINDS)
def test_every_number_that_a_policy_reads_can_be_configured(kind):
    assert set(POLICY_KINDS[kind].model_fields) - {"kind"} <= set(SelectionSettings.model_fields)


def test_the_form_shows_a_list_of_policies():
    field = SelectionSettings.model_json_schema()["properties"]["policy"]
    assert (field["type"], field["enum"]) == ("string", list(POLICY_NAMES))


def test_a_proxy_context_without_a_proxy_is_refused_with_a_sentence():
    with pytest.raises(InvalidConfig) as caught:
        check_selection(SelectionSettings(policy="linucb", context="proxy"))
    assert str(caught.value) == (
        "selection.context=proxy, but selection.proxy_model names no model; give the folder or the hub id "
        "of a smaller one, or set context to gradient or hidden_state"
    )
    check_selection(SelectionSettings(policy="ucb_beta", context="proxy"))


@pytest.mark.parametrize(
    ("policy", "context", "clusters", "needed"),
    [
        ("linucb", "gradient", "gradient", True),
        ("linucb", "gradient", "hidden_state", True),
        ("linucb", "hidden_state", "gradient", False),
        ("linucb", "hidden_state", "hidden_state", False),
        ("linucb", "proxy", "gradient", False),
        ("linucb", "output_error", "gradient", False),
        ("ucb_beta", "gradient", "gradient", True),
        ("ucb_beta", "gradient", "hidden_state", False),
        ("random", "gradient", "gradient", False),
        ("full", "gradient", "gradient", False),
    ],
)
def test_a_gradient_pass_is_needed_where_what_a_policy_draws_by_are_gradients(
    policy, context, clusters, needed
):
    settings = SelectionSettings(policy=policy, context=context, proxy_model="some/model")
    assert needs_gradient_pass(settings, ClusterSettings(features=clusters)) is needed


def test_an_audit_that_takes_all_of_the_budget_is_refused_with_a_sentence():
    with pytest.raises(BudgetError) as caught:
        check_selection(SelectionSettings(audit_fraction=0.2, budget_fraction=0.2))
    assert str(caught.value) == (
        "selection.audit_fraction=0.2 is not below budget_fraction=0.2, which it is a part of; raise the "
        "budget, or set audit_fraction to 0 for a selection without a certificate"
    )


def test_a_selection_above_the_budget_is_refused_with_both_figures():
    with pytest.raises(BudgetError) as caught:
        check_selection(SelectionSettings(top_fraction=0.3, budget_fraction=0.2))
    assert str(caught.value) == (
        "selection.top_fraction=0.3 is above budget_fraction=0.2: only drawn samples can be selected; "
        "raise the budget"
    )


@pytest.mark.parametrize(
    "settings",
    [
        SelectionSettings(),
        SelectionSettings(top_fraction=0.2, budget_fraction=0.2),
        SelectionSettings(policy="random", top_fraction=0.5),
        SelectionSettings(policy="full", top_fraction=0.5),
    ],
)
def test_what_can_be_selected_passes(settings):
    check_selection(settings)
    assert 0 < settings.top_fraction <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"beta": -1}, {"top_share": 0}, {"top_share": 1}, {"explore_fraction": 1.1}, {"budget_fraction": 0},
        {"cold_start_fraction": -0.1}, {"audit_fraction": 1}, {"top_fraction": 0}, {"round_samples": 0},
        {"aggregate": "median"}, {"context": "text"}, {"early_stop": -0.01}, {"early_stop": 1},
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        SelectionSettings(**change)
