"""What a run is to evaluate, checked before it computes anything.

Writes nothing but the data sets that lm-eval downloads.
"""

from collections.abc import Sequence

from clusterucb_core.errors import InvalidConfig, InvalidTarget
from clusterucb_core.evaluation import (
    OWN_PERPLEXITY,
    OWN_TASKS,
    EvaluateSettings,
    check_sandbox,
    check_task_names,
    load_tasks,
    perplexity_name,
    shipped_names,
    task_names,
)
from clusterucb_core.records import Target


def check_tasks(settings: EvaluateSettings, targets: Sequence[Target]) -> None:
    """Check names of tasks and whether code can be run; with tasks that lm-eval ships this takes seconds.

    Args:
        settings: what a run evaluates.
        targets: its targets.

    Raises:
        InvalidConfig: a task is unknown, or code would have to be run and must not.
        InvalidTarget: a target has no test rows for tasks that are made of them.
        NoSandbox: code is to be run and cannot be isolated on this machine.
    """
    for target in targets:
        _check_own(settings, target)
    own = [_own_names(settings, target) for target in targets]
    # targets that leave the same names to lm-eval are checked at once: its task files take seconds to read
    for names in {tuple(shipped_names(settings.tasks, names)): names for names in own}.values():
        check_task_names(settings.tasks, names)
    if any(_runs_code(settings, target) for target in targets):
        check_sandbox()


def load_shipped_tasks(settings: EvaluateSettings, targets: Sequence[Target]) -> None:
    """Load the tasks that lm-eval ships with their data, so that a run does not fail for them at its end.

    Raises:
        InvalidConfig: one cannot be loaded, for instance because its data cannot be had.
    """
    shipped = _shipped(settings, targets)
    if shipped:
        load_tasks(shipped, None, run_code=False)


def _check_own(settings: EvaluateSettings, target: Target) -> None:
    own = _own_names(settings, target)
    of_rows = {OWN_TASKS, OWN_PERPLEXITY, *own} & set(settings.tasks)
    if of_rows and not target.test:
        raise InvalidTarget(
            f"evaluate.tasks names {', '.join(sorted(of_rows))}, but target {target.name!r} has no test "
            "rows; set target.test"
        )
    code = f"{target.name}_code"
    if code in settings.tasks and code not in own:
        cure = (
            "give its test rows the keys `test` and `entry_point`"
            if settings.allow_code_execution
            else "set evaluate.allow_code_execution=true to run it in a sandbox"
        )
        raise InvalidConfig(f"evaluate.tasks names {code!r}, which runs code that the model writes; {cure}")


def _own_names(settings: EvaluateSettings, target: Target) -> list[str]:
    return [*task_names(target, run_code=settings.allow_code_execution), perplexity_name(target)]


def _runs_code(settings: EvaluateSettings, target: Target) -> bool:
    code = f"{target.name}_code"
    return code in _own_names(settings, target) and bool({OWN_TASKS, code} & set(settings.tasks))


def _shipped(settings: EvaluateSettings, targets: Sequence[Target]) -> list[str]:
    """Return the names that are not each target's own, in their order."""
    foreign = {
        name for target in targets for name in shipped_names(settings.tasks, _own_names(settings, target))
    }
    return [name for name in settings.tasks if name in foreign]
