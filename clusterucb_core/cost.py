"""What a selection took: gradient evaluations and floating-point operations, by stage.

With P parameters and T tokens a forward pass takes 2 P T operations; alone, it counts as no gradient. The
backward pass of a LoRA model takes another 2 P T: gradients flow through all weights, but those of the frozen
ones are never formed.
"""

from dataclasses import dataclass

CostTable = dict[str, dict[str, int | float]]


@dataclass(frozen=True, slots=True)
class StageCost:
    """Gradients computed (samples x checkpoints) and operations spent by one stage."""

    gradient_evaluations: int
    flops: float


@dataclass(frozen=True, slots=True)
class CostLedger:
    """Costs in the order they arose, each with its stage ("clustering", "context", "selection", ...)."""

    entries: tuple[tuple[str, StageCost], ...] = ()


def forward_flops(n_parameters: int, n_tokens: int) -> float:
    """Return the operations of a forward pass, 2 P T.

    Raises:
        ValueError: a negative count.
    """
    if n_parameters < 0 or n_tokens < 0:
        raise ValueError(f"n_parameters={n_parameters} and n_tokens={n_tokens} must not be negative")
    return 2.0 * n_parameters * n_tokens


def lora_backward_flops(n_parameters: int, n_tokens: int) -> float:
    """Return the operations of a LoRA model's backward pass, 2 P T."""
    return forward_flops(n_parameters, n_tokens)


def gradient_flops(n_parameters: int, n_tokens: int) -> float:
    """Return the operations of per-sample LoRA gradients, forward and backward, 4 P T."""
    return forward_flops(n_parameters, n_tokens) + lora_backward_flops(n_parameters, n_tokens)


def gradient_cost(*, n_samples: int, n_checkpoints: int, n_parameters: int, n_tokens: int) -> StageCost:
    """Return the cost of the gradients of some samples at some checkpoints.

    Args:
        n_samples: samples with a gradient at each checkpoint.
        n_checkpoints: checkpoints.
        n_parameters: parameters of the model, frozen ones included.
        n_tokens: tokens of all those samples together, counted once.

    Raises:
        ValueError: a negative count.
    """
    if n_samples < 0 or n_checkpoints < 0:
        raise ValueError(f"n_samples={n_samples} and n_checkpoints={n_checkpoints} must not be negative")
    return StageCost(n_samples * n_checkpoints, n_checkpoints * gradient_flops(n_parameters, n_tokens))


def forward_cost(*, n_parameters: int, n_tokens: int) -> StageCost:
    """Return the cost of a forward pass alone: 2 P T operations and no gradient.

    Args:
        n_parameters: parameters of the model that is run, which may be a smaller one.
        n_tokens: tokens of the samples, as that model's tokenizer counts them.

    Raises:
        ValueError: a negative count.
    """
    return StageCost(0, forward_flops(n_parameters, n_tokens))


def full_selection_cost(*, n_samples: int, n_checkpoints: int, n_parameters: int, n_tokens: int) -> StageCost:
    """Return what selection without a budget takes: a gradient of all n samples at every checkpoint.

    Args:
        n_samples: samples of the pool.
        n_checkpoints: checkpoints.
        n_parameters: parameters of the model, frozen ones included.
        n_tokens: tokens of the whole pool, counted once.

    Raises:
        ValueError: a negative count.
    """
    return gradient_cost(
        n_samples=n_samples, n_checkpoints=n_checkpoints, n_parameters=n_parameters, n_tokens=n_tokens
    )


def add_cost(ledger: CostLedger, stage: str, cost: StageCost) -> CostLedger:
    """Return the ledger with one more entry."""
    return CostLedger((*ledger.entries, (stage, cost)))


def cost_by_stage(ledger: CostLedger) -> CostTable:
    """Return {stage: {"gradient_evaluations": int, "flops": float}}, stages in order of appearance."""
    table: CostTable = {}
    for stage, cost in ledger.entries:
        row = table.setdefault(stage, {"gradient_evaluations": 0, "flops": 0.0})
        row["gradient_evaluations"] += cost.gradient_evaluations
        row["flops"] += cost.flops
    return table


def total_cost(ledger: CostLedger) -> StageCost:
    """Return the sum over all entries."""
    return StageCost(
        sum(cost.gradient_evaluations for _, cost in ledger.entries),
        float(sum(cost.flops for _, cost in ledger.entries)),
    )


def relative_gradient_cost(ledger: CostLedger, full: StageCost) -> float:
    """Return the gradient evaluations of a ledger over those of full selection, N x checkpoints.

    Raises:
        ValueError: full selection takes no gradient evaluations.
    """
    if full.gradient_evaluations < 1:
        raise ValueError("full selection has 0 gradient evaluations; the pool or the checkpoints are empty")
    return total_cost(ledger).gradient_evaluations / full.gradient_evaluations
