"""What a run evaluates, and against which baselines."""

from typing import Literal

from pydantic import Field, PositiveInt

from clusterucb_core.frozen import Frozen

Baseline = Literal["zero_shot", "random", "full"]


class EvaluateSettings(Frozen):
    """How the fine-tuned model and its baselines are evaluated."""

    tasks: tuple[str, ...] = Field(
        default=(),
        title="Tasks",
        description="Empty: the test loss only. 'target': the tasks made from the target's test rows. "
        "'target_perplexity': the perplexity of their gold answers. Other names: tasks that lm-eval ships.",
    )
    baselines: tuple[Baseline, ...] = Field(
        default=("zero_shot", "random"),
        title="Baselines",
        description="What stands beside the selection: the base model, a random selection, the whole pool's.",
    )
    random_seeds: PositiveInt = Field(
        default=3, title="Random seeds", description="How many random selections are trained and evaluated."
    )
    batch_size: PositiveInt | Literal["auto"] = Field(
        default="auto", title="Batch size", description="Rows in a batch of lm-eval."
    )
    limit: PositiveInt | None = Field(
        default=None, title="Limit", description="Evaluate the first rows of each task only."
    )
    allow_code_execution: bool = Field(
        default=False,
        title="Allow code execution",
        description="Run the code that the model writes for test rows with `test` and `entry_point`, in a "
        "sandbox without network and files, and score it by pass@1. Off: it is compared as text.",
    )
