import json

import pytest

from clusterucb_core.cost import (
    CostLedger,
    StageCost,
    add_cost,
    cost_by_stage,
    forward_cost,
    forward_flops,
    full_selection_cost,
    gradient_cost,
    gradient_flops,
    lora_backward_flops,
    relative_gradient_cost,
    total_cost,
)


def test_operations_by_hand_for_a_7b_model_and_400_tokens():
    assert forward_flops(7_000_000_000, 400) == 5.6e12
    assert lora_backward_flops(7_000_000_000, 400) == 5.6e12
    assert gradient_flops(7_000_000_000, 400) == 1.12e13


def test_full_selection_takes_a_gradient_of_every_sample_at_every_checkpoint():
    full = full_selection_cost(n_samples=1000, n_checkpoints=4, n_parameters=10, n_tokens=50_000)
    assert full == StageCost(gradient_evaluations=4000, flops=4 * 4 * 10 * 50_000)


def test_a_forward_pass_alone_counts_as_no_gradient_and_half_the_operations():
    cost = forward_cost(n_parameters=7_000_000_000, n_tokens=400)
    assert cost == StageCost(gradient_evaluations=0, flops=5.6e12)
    with_gradient = gradient_cost(n_samples=1, n_checkpoints=1, n_parameters=7_000_000_000, n_tokens=400)
    assert with_gradient.flops == 2 * cost.flops


def test_a_ledger_sums_by_stage_in_order_of_appearance():
    ledger = add_cost(CostLedger(), "clustering", StageCost(1000, 5.0))
    for _ in range(2):
        ledger = add_cost(
            ledger, "selection", gradient_cost(n_samples=100, n_checkpoints=4, n_parameters=1, n_tokens=2)
        )
    table = cost_by_stage(ledger)
    assert json.loads(json.dumps(table)) == {
        "clustering": {"gradient_evaluations": 1000, "flops": 5.0},
        "selection": {"gradient_evaluations": 800, "flops": 64.0},
    }
    assert list(table) == ["clustering", "selection"]
    assert total_cost(ledger) == StageCost(1800, 69.0)


def test_the_relative_cost_counts_the_clustering_pass():
    # Clustering N = 1000 at one checkpoint, then 200 samples at four: 1,800 of 4,000.
    ledger = CostLedger((("clustering", StageCost(1000, 0.0)), ("selection", StageCost(800, 0.0))))
    full = full_selection_cost(n_samples=1000, n_checkpoints=4, n_parameters=1, n_tokens=1)
    assert relative_gradient_cost(ledger, full) == pytest.approx(0.45)


def test_adding_a_cost_leaves_the_old_ledger_alone():
    empty = CostLedger()
    add_cost(empty, "clustering", StageCost(1, 1.0))
    assert cost_by_stage(empty) == {}
    assert total_cost(empty) == StageCost(0, 0.0)


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="n_tokens=-1 must not be negative"):
        forward_flops(1, -1)
    with pytest.raises(ValueError, match="n_checkpoints=-1 must not be negative"):
        gradient_cost(n_samples=1, n_checkpoints=-1, n_parameters=1, n_tokens=1)
    with pytest.raises(ValueError, match="0 gradient evaluations"):
        relative_gradient_cost(CostLedger(), StageCost(0, 0.0))
