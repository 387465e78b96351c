"""The settings of a selection, and the arithmetic between them and the bandit (arXiv 2506.10288)."""

import difflib
import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from clusterucb_core.bandit.policies import (
    POLICY_KINDS,
    LinUcb,
    Policy,
    PolicySettings,
    configured_policy,
)
from clusterucb_core.clustering import ClusterSettings
from clusterucb_core.errors import BudgetError, InvalidConfig
from clusterucb_core.influence import Aggregate, takes_turns
from clusterucb_core.seeds import child_seed
from clusterucb_core.workspace import NOT_IN_KEY

OTHER_POLICIES = ("linucb", "random", "full")
POLICY_NAMES = (*POLICY_KINDS, *OTHER_POLICIES)


def known_policy(name: str) -> str:
    """Return the name of a policy unchanged.

    Raises:
        ValueError: no policy has this name; the message lists the known ones.
    """
    if name not in POLICY_NAMES:
        near = difflib.get_close_matches(name, POLICY_NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown policy {name!r}; {hint}known: {', '.join(POLICY_NAMES)}")
    return name


PolicyName = Annotated[
    str, AfterValidator(known_policy), Field(json_schema_extra={"enum": list(POLICY_NAMES)})
]


ContextName = Literal["gradient", "hidden_state", "output_error", "proxy"]


class SelectionSettings(PolicySettings):
    """What is drawn from the pool, and how much of it is selected; the numbers of policies come first."""

    policy: PolicyName = Field(
        default="linucb",
        title="Policy",
        description="How samples are drawn: linucb by regression on side information, ucb_beta from clusters "
        "by the paper's rule; random: k at random without gradients; full: no budget.",
        json_schema_extra={"enum": list(POLICY_NAMES)},
    )
    explore_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        title="Explore fraction",
        description="Uniform share of each round of linucb.",
    )
    context: ContextName = Field(
        default="gradient",
        title="Context",
        description="Side information that linucb regresses rewards on: gradients at the first checkpoint, "
        "which take one of every sample; hidden states there, or the errors that the output head sees, for a "
        "forward pass; hidden states of a smaller model (proxy).",
    )
    proxy_model: str | None = Field(
        default=None,
        title="Proxy model",
        description="Folder or hub id of the smaller model whose forward pass the proxy context comes from.",
        # the plan keys it by its content
        json_schema_extra=NOT_IN_KEY,
    )
    budget_fraction: float = Field(
        default=0.2,
        gt=0,
        le=1,
        title="Budget",
        description="Share of the pool whose gradients one selection may compute.",
    )
    cold_start_fraction: float = Field(
        default=0.05,
        ge=0,
        le=1,
        title="Cold start",
        description="Share of each cluster drawn before the policy decides.",
    )
    audit_fraction: float = Field(
        default=0.04,
        ge=0,
        lt=1,
        title="Audit",
        description="Share of the pool, part of the budget, drawn to certify the result; 0: none.",
    )
    top_fraction: float = Field(
        default=0.05, gt=0, le=1, title="Selected share", description="Share of the pool that is selected."
    )
    early_stop: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        title="Early stop",
        description="The draws end when fewer samples than this share of the k selected are expected to be "
        "left undrawn above the k-th best reward; 0: spend the whole budget.",
    )
    cost_limit: float = Field(
        default=1.05,
        gt=0,
        title="Cost limit",
        description="Tokens that the draws of linucb are held to, beside as many average samples; those that "
        "fill the selection first may be of any length.",
    )
    round_samples: int = Field(
        default=64,
        ge=1,
        title="Draws a round",
        description="Samples drawn on one set of bounds; 1 is the paper's rule.",
    )
    aggregate: Aggregate = Field(
        default="max",
        title="Aggregate",
        description="How scores on a target's subtasks select: by their max or mean, by round_robin of the "
        "subtasks, each taking its best sample in turn, or by round_robin_validation of the validation rows.",
    )


def check_selection(settings: SelectionSettings) -> None:
    """Refuse settings that cannot be run.

    Raises:
        InvalidConfig: the proxy of a proxy context is not named, or an early stop where subtasks take turns
            and have no k-th best to pass.
        BudgetError: the audit takes all of the budget, or more is to be selected than the budget draws.
    """
    if needs_proxy(settings) and settings.proxy_model is None:
        raise InvalidConfig(
            "selection.context=proxy, but selection.proxy_model names no model; give the folder or the hub "
            "id of a smaller one, or set context to gradient or hidden_state"
        )
    if takes_turns(settings.aggregate) and settings.early_stop > 0:
        raise InvalidConfig(
            f"selection.early_stop={settings.early_stop} looks for samples above the k-th best influence, "
            f"which aggregate={settings.aggregate} does not have; set early_stop to 0, or aggregate to max"
        )
    if is_bandit(settings.policy) and settings.audit_fraction >= settings.budget_fraction:
        raise BudgetError(
            f"selection.audit_fraction={settings.audit_fraction} is not below "
            f"budget_fraction={settings.budget_fraction}, which it is a part of; raise the budget, or set "
            "audit_fraction to 0 for a selection without a certificate"
        )
    if is_bandit(settings.policy) and settings.top_fraction > settings.budget_fraction:
        raise BudgetError(
            f"selection.top_fraction={settings.top_fraction} is above "
            f"budget_fraction={settings.budget_fraction}: only drawn samples can be selected; "
            "raise the budget"
        )


def needs_proxy(settings: SelectionSettings) -> bool:
    """Tell whether side information comes from a smaller model."""
    return settings.policy == "linucb" and settings.context == "proxy"


def needs_gradient_pass(settings: SelectionSettings, clusters: ClusterSettings) -> bool:
    """Tell whether a policy that draws needs a gradient of every sample at the first checkpoint.

    Clusters of gradients need it under a policy that draws from clusters, and `linucb` where its side
    information comes from gradients. In dynamic mode the first selection then knows every influence; without
    that pass it draws under the budget, too.
    """
    if settings.policy == "linucb":
        return settings.context == "gradient"
    return is_bandit(settings.policy) and clusters.features == "gradient"


def is_bandit(policy: str) -> bool:
    """Tell whether a policy draws under a budget, by clusters or by side information."""
    return policy == "linucb" or policy in POLICY_KINDS


def cold_start_of(settings: SelectionSettings) -> float:
    """Return the share of each cluster that is drawn first; `linucb` has no cold start."""
    return 0.0 if settings.policy == "linucb" else settings.cold_start_fraction


def bandit_policy(settings: SelectionSettings) -> Policy | LinUcb:
    """Return the bandit policy that the settings name, with the settings that it reads.

    Raises:
        InvalidConfig: the name is none of a bandit policy.
    """
    if settings.policy == "linucb":
        return LinUcb(explore_fraction=settings.explore_fraction)
    if not is_bandit(settings.policy):
        raise InvalidConfig(f"selection.policy={settings.policy} draws under no budget")
    return configured_policy(settings)


def baseline_seed(seed: int, number: int) -> int:
    """Return the seed of the random selection of a number, in a run with a seed."""
    return child_seed(seed, "random baseline", str(number))


def share_of(fraction: float, n_samples: int) -> int:
    """Return floor(fraction x n + 1e-9), the rule for every count that is given as a share."""
    return math.floor(fraction * n_samples + 1e-9)
