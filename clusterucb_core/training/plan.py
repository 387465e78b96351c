"""How long, how fast and in which order a training runs."""

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.frozen import Frozen
from clusterucb_core.records import IntArray
from clusterucb_core.seeds import child_rng


class TrainingPlan(Frozen):
    """One training: a stretch of a linear learning rate schedule with warmup.

    Attributes:
        learning_rate: at the top of the schedule.
        batch_size: samples an optimiser step; the last step of a pass over the samples may have fewer.
        total_steps: optimiser steps of the whole schedule, of which this training may be a part.
        warmup_share: share of the schedule over which the learning rate rises.
        start_step: position in the schedule at which this training begins.
        steps: optimiser steps to take, through as many passes as needed; or
        epochs: passes to make; exactly one of the two.
        micro_batch_tokens: padded tokens computed at once. It changes the result by rounding only, dropout
            apart.
        seed: the run's seed.
        first_checkpoint: number of the first checkpoint; above 1 where a training that was cut short goes on.
    """

    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    batch_size: int = Field(ge=1)
    total_steps: int = Field(ge=1)
    warmup_share: float = Field(default=0.03, ge=0, le=1)
    start_step: int = Field(default=0, ge=0)
    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    micro_batch_tokens: int | Literal["auto"] = "auto"
    seed: int = 0
    first_checkpoint: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps={self.steps} and epochs={self.epochs}: give exactly one of the two")
        if self.micro_batch_tokens != "auto" and self.micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens={self.micro_batch_tokens}: give at least 1, or auto")
        return self


@dataclass(frozen=True)
class Schedule:
    """What each optimiser step trains on.

    Attributes:
        batches: sample indices of each step, in order.
        ends: number of steps after which a checkpoint is due, ascending; the last is the number of steps.
    """

    batches: list[IntArray]
    ends: list[int]


def steps_per_epoch(n_samples: int, batch_size: int) -> int:
    """Return the optimiser steps of one pass: the number of batches, the last one possibly smaller."""
    return math.ceil(n_samples / batch_size)


def learning_rate_factor(plan: TrainingPlan, step: int) -> float:
    """Return the share of the top learning rate at a step of the whole schedule, counted from 0.

    As in `transformers.get_linear_schedule_with_warmup`, save that warmup never takes up the whole schedule,
    which in a schedule of one step would leave a learning rate of 0 only.
    """
    warmup = min(math.ceil(plan.warmup_share * plan.total_steps), plan.total_steps - 1)
    if step < warmup:
        return step / warmup
    return max(0.0, (plan.total_steps - step) / (plan.total_steps - warmup))


def make_schedule(plan: TrainingPlan, n_samples: int) -> Schedule:
    """Return the batches of a plan.

    Each pass is a permutation seeded by the step at which it begins, so that a training taken up again in the
    middle sees what it would have seen in one go. Epochs begin at `start_step`; steps count passes from step
    0 of the schedule.

    Raises:
        InvalidConfig: the plan runs past the end of its schedule.
    """
    per_pass = steps_per_epoch(n_samples, plan.batch_size)
    count = plan.steps if plan.steps is not None else per_pass * (plan.epochs or 0)
    if plan.start_step + count > plan.total_steps:
        raise InvalidConfig(
            f"{count} optimiser steps from step {plan.start_step} run past total_steps={plan.total_steps}, "
            "where the learning rate is 0; raise total_steps or train less"
        )
    ends = [count] if plan.epochs is None else [per_pass * (epoch + 1) for epoch in range(plan.epochs)]
    origin = 0 if plan.epochs is None else plan.start_step
    batches: list[IntArray] = []
    order: IntArray = np.arange(0)
    for step in range(plan.start_step, plan.start_step + count):
        within = (step - origin) % per_pass
        if within == 0 or not batches:
            order = _permutation(plan.seed, step - within, n_samples)
        batches.append(order[within * plan.batch_size : (within + 1) * plan.batch_size])
    return Schedule(batches, ends)


def remaining_plan(plan: TrainingPlan, *, done: int, step: int) -> TrainingPlan:
    """Return what is left of a plan of epochs after its first ones.

    Args:
        plan: the whole.
        done: epochs that are done, fewer than all.
        step: position in the schedule behind them.
    """
    assert plan.epochs is not None, "a plan of steps has one checkpoint, its last"
    left = {"epochs": plan.epochs - done, "start_step": step}
    return plan.model_copy(update=left | {"first_checkpoint": plan.first_checkpoint + done})


def micro_batches(lengths: IntArray, budget_tokens: int) -> list[IntArray]:
    """Split samples into groups of similar length whose padded size stays within a budget.

    Args:
        lengths: tokens of each sample [n].
        budget_tokens: padded tokens a group; a longer sample is a group of its own.

    Returns:
        Indices into `lengths`, longest samples first; each appears once.
    """
    order = np.argsort(-lengths, kind="stable")
    groups: list[IntArray] = []
    position = 0
    while position < order.size:
        width = max(1, int(budget_tokens // max(int(lengths[order[position]]), 1)))
        groups.append(order[position : position + width])
        position += width
    return groups


def _permutation(seed: int, first_step: int, n_samples: int) -> IntArray:
    return child_rng(seed, "training_order", str(first_step)).permutation(n_samples)
