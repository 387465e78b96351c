"""How a run is executed: workers, devices, shards. Nothing here changes a result or a fingerprint."""

from typing import Annotated, Literal

from pydantic import Field

from clusterucb_core.frozen import Frozen

Auto = Literal["auto"]


class ExecutionSettings(Frozen):
    """How a run is executed."""

    runner: str = Field(
        default="threads",
        title="Runner",
        description="What runs the shard tasks: threads or processes here, or Ray.",
    )
    workers: Annotated[int, Field(ge=1)] | Auto = Field(
        default="auto",
        title="Workers",
        description="Shard tasks at a time. auto: one a GPU, else one a CPU core.",
    )
    ray_address: str | None = Field(
        default=None, title="Ray address", description="An existing Ray cluster; empty starts one here."
    )
    device: str = Field(
        default="auto",
        title="Device",
        description="cpu, cuda, cuda:0 and so on. auto: a GPU where there is one.",
    )
    gpus_per_task: Annotated[float, Field(ge=0)] | Auto = Field(
        default="auto", title="GPUs a task", description="Share of a GPU that a Ray shard task asks for."
    )
    shard_samples: int = Field(
        default=4096,
        ge=1,
        title="Samples a shard",
        description="About how many samples one shard task computes.",
    )
    max_batch_tokens: Annotated[int, Field(ge=1)] | Auto = Field(
        default="auto",
        title="Tokens a batch",
        description=(
            "Padded tokens of one forward and backward pass. auto: what a GPU has memory for; 2,048 on a CPU."
        ),
    )
    storage_root: str | None = Field(
        default=None,
        title="Storage root",
        description="Folder of artifacts; empty: artifacts/ in the state folder.",
    )
    when_tracking_is_down: Literal["buffer", "fail"] = Field(
        default="buffer",
        title="When tracking is down",
        description="buffer: keep in the state folder what MLflow could not take, and go on. fail: stop.",
    )
