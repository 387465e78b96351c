"""How a run is executed: workers, devices, shards. Nothing here changes a result or a fingerprint."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.frozen import Frozen
from clusterucb_core.object_store import StorageRoot

Auto = Literal["auto"]


def without_secret(address: str) -> str:
    """Return the address of a Ray cluster.

    Raises:
        InvalidConfig: it holds a user, a password or a query. The message does not repeat what may be one.
    """
    if set("@?#") & set(address):
        raise InvalidConfig(
            "execution.ray_address holds a user, a password, or what follows a ? or #, and Prefect would "
            "show them; give ray://HOST:PORT, HOST:PORT or auto, and put a token into RAY_AUTH_TOKEN"
        )
    return address


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
        description=(
            "Shard tasks at a time. auto: one for each GPU of this machine, else one. "
            "An existing Ray cluster runs as many as it has room for."
        ),
    )
    ray_address: Annotated[str, AfterValidator(without_secret)] | None = Field(
        default=None,
        title="Ray address",
        description=(
            "An existing Ray cluster: ray://host:10001, host:6379 or auto. Empty starts one here for the run."
        ),
    )
    device: str = Field(
        default="auto",
        title="Device",
        description="cpu, cuda, cuda:0 and so on. auto: a GPU where there is one.",
    )
    gpus_per_task: Annotated[float, Field(ge=0)] | Auto = Field(
        default="auto",
        title="GPUs a task",
        description=(
            "GPUs that a Ray shard task asks for. auto: 1 where the cluster has GPUs and device is not cpu. "
            "A GPU is held by one task at a time, so a share below 1 makes nothing faster."
        ),
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
    storage_root: StorageRoot | None = Field(
        default=None,
        title="Storage root",
        description=(
            "Where artifacts lie; empty: artifacts/ in the state folder. For machines of a Ray cluster, an "
            "object store such as s3://bucket/prefix, or a shared folder with the same path on all of them."
        ),
    )
    when_tracking_is_down: Literal["buffer", "fail"] = Field(
        default="buffer",
        title="When tracking is down",
        description="buffer: keep in the state folder what MLflow could not take, and go on. fail: stop.",
    )
