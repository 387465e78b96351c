"""What runs the shard tasks. To add an executor, edit this file only: a frozen variant and one `case`."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Literal, assert_never, get_args

from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.frozen import Frozen
from clusterucb_core.near_names import known_names
from flows.flow_runs import flow_run_here, server_address
from flows.ray_cluster import Ray, ray_runner, ray_started, ray_task_runner
from flows.stopping import end_with_parent, stopping_workers


class Threads(Frozen):
    """Threads of this process."""

    kind: Literal["threads"] = "threads"
    workers: int


class Processes(Frozen):
    """Processes of this machine."""

    kind: Literal["processes"] = "processes"
    workers: int


Runner = Annotated[Threads | Processes | Ray, Field(discriminator="kind")]
RUNNER_KINDS = {variant.model_fields["kind"].default: variant for variant in get_args(get_args(Runner)[0])}


def choose_runner(execution: ExecutionSettings, gpus: int) -> Runner:
    """Return the executor that the settings name.

    Args:
        execution: its `runner` and `workers`; for Ray its addresses and devices, too.
        gpus: CUDA devices of this machine; `workers: auto` is one for each of them, else one.

    Raises:
        InvalidConfig: no executor has this name, or this one cannot work here.
    """
    if execution.runner not in RUNNER_KINDS:
        known = known_names(execution.runner, list(RUNNER_KINDS))
        raise InvalidConfig(f"execution.runner={execution.runner!r} is unknown; {known}")
    workers = max(1, gpus) if execution.workers == "auto" else execution.workers
    if execution.runner == "ray":
        return ray_runner(execution, workers)
    return RUNNER_KINDS[execution.runner](workers=workers)


def task_runner(runner: Runner) -> TaskRunner[Any]:
    """Return the Prefect task runner of an executor."""
    match runner:
        case Threads():
            return ThreadPoolTaskRunner(max_workers=runner.workers)
        case Processes():
            return ProcessPoolTaskRunner(max_workers=runner.workers, initializer=end_with_parent)
        case Ray():
            return ray_task_runner(runner)
        case _:
            assert_never(runner)


@contextmanager
def mapped_on(runner: Runner) -> Generator[None]:
    """Let the flow run that is under way map its tasks on an executor, which stops when the run does.

    Only the flow itself can do this: a deployment starts it with the task runner that it was declared with.
    """
    context = flow_run_here()
    with ExitStack() as stack:
        if isinstance(runner, Processes):
            # they take their settings from here, and would each start a server of their own
            stack.enter_context(temporary_settings({PREFECT_API_URL: server_address()}))
        running = ray_started(runner) if isinstance(runner, Ray) else task_runner(runner)
        started = stack.enter_context(running)
        stack.enter_context(context.model_copy(update={"task_runner": started}))
        stack.enter_context(stopping_workers())
        yield


def visible_gpus() -> int:
    """Return the number of CUDA devices that this process may use."""
    import torch

    return torch.cuda.device_count()
