"""Names of lm-eval tasks: which there are, and whether lm-eval would run a model's code for one.

Reads the task files that lm-eval ships.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from clusterucb_core.errors import InvalidConfig

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

OWN_TASKS = "target"
OWN_PERPLEXITY = "target_perplexity"


def shipped_names(task_names: Sequence[str], own_names: Sequence[str]) -> list[str]:
    """Return the names that neither stand for tasks of the target nor name one of them."""
    return [name for name in task_names if name not in (OWN_TASKS, OWN_PERPLEXITY, *own_names)]


def check_task_names(task_names: Sequence[str], own_names: Sequence[str] = ()) -> None:
    """Check names of tasks without a model; with a name that is not the target's own this takes seconds.

    Args:
        task_names: what a run asks for.
        own_names: names of the tasks made from its target.

    Raises:
        InvalidConfig: a task is unknown, with near matches in the message; or lm-eval would run its code.
    """
    shipped = shipped_names(task_names, own_names)
    if shipped:
        from lm_eval.tasks import TaskManager

        check_shipped(shipped, own_names, TaskManager())


def check_shipped(shipped: Sequence[str], own_names: Sequence[str], manager: "TaskManager") -> None:
    """Check names of tasks that lm-eval is to ship; `manager` knows what it does.

    Raises:
        InvalidConfig: a task is unknown, with near matches in the message; or lm-eval would run its code.
    """
    known = set(manager.all_tasks)
    for name in shipped:
        if name not in known:
            candidates = sorted({OWN_TASKS, OWN_PERPLEXITY, *own_names, *known})
            near = difflib.get_close_matches(name, candidates, n=5)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise InvalidConfig(
                f"evaluate.tasks names the unknown task {name!r}; {hint}"
                f"use {OWN_TASKS!r}, {', '.join([*own_names, 'a task that lm-eval ships'])}, or none"
            )
        for member in _members(name, cast("dict[str, Any]", manager.task_index)):
            if (member.cfg or {}).get("unsafe_code"):
                raise InvalidConfig(
                    f"evaluate.tasks names {name!r}, for which lm-eval runs code of the model in this "
                    f"process; give the rows of {member.name!r} as a target file, with `test` and "
                    "`entry_point` in every row, name its task and set "
                    "evaluate.allow_code_execution=true: then the code runs in a sandbox"
                )


def _members(name: str, index: dict[str, Any]) -> Iterator[Any]:
    """Yield the entry of a name and of all that it stands for; a member that is no name stands for itself."""
    entry = index.get(name)
    if entry is None:
        return
    yield entry
    listed: object = (entry.cfg or {}).get("task")
    inner = (
        [item for item in cast("list[object]", listed) if isinstance(item, str)]
        if isinstance(listed, list)
        else []
    )
    for member in [*inner, *(entry.tags if entry.cfg is None else ())]:
        if member != name:
            yield from _members(member, index)
