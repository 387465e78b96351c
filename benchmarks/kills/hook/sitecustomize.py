"""Read by every Python process of a run under test: ends it by SIGKILL at a named point once that is armed.

The file that `KILLS_ARMED` names holds the name of a point, or `any`. The process that reaches it first
renames the file to `<name>.hit`, writes the point and its own pid there, and kills itself. Without the
variable nothing is changed.
"""

import contextlib
import functools
import importlib.abc
import json
import os
import signal
import sys

ARMED = os.environ.get("KILLS_ARMED")


def die_at(point):
    """End this process where the point is armed."""
    try:
        with open(ARMED) as file:  # noqa: PTH123 - pathlib would be imported into every process
            wanted = file.read()
        if wanted not in (point, "any"):
            return
        os.rename(ARMED, f"{ARMED}.hit")  # noqa: PTH104 - one process gets it, whoever comes first
    except FileNotFoundError:
        return
    with open(f"{ARMED}.hit", "w") as file:  # noqa: PTH123
        json.dump({"point": point, "pid": os.getpid()}, file)
    os.kill(os.getpid(), signal.SIGKILL)


def around(module, name, before, after):
    """Make points of the moments before and after a function's work."""
    function = getattr(module, name)

    @functools.wraps(function)
    def watched(*arguments, **named):
        if before:
            die_at(before)
        result = function(*arguments, **named)
        if after:
            die_at(after)
        return result

    setattr(module, name, watched)


def within(module, name, inside, after):
    """Make points of the moments in which a context's block has begun or ended, and after the context."""
    context = getattr(module, name)
    first, last = inside

    @functools.wraps(context)
    @contextlib.contextmanager
    def watched(*arguments, **named):
        with context(*arguments, **named) as value:
            if first:
                die_at(first)
            yield value
            if last:
                die_at(last)
        if after:
            die_at(after)

    setattr(module, name, watched)


def _artifacts(module):
    # an artifact lies whole in its draft, manifest and all; then it has its name, and nobody was told
    around(module, "_publish", "before rename", "after rename")
    within(module, "held_draft", ("draft made", None), None)


PATCHES = {
    "clusterucb_core.artifacts": _artifacts,
    "clusterucb_core.store.statements": lambda module: within(
        module, "transaction", (None, "before commit"), "after commit"
    ),
    "clusterucb_core.lm.checkpoints": lambda module: around(
        module, "_write_moments", "half a checkpoint", None
    ),
    "clusterucb_core.report.reporting": lambda module: around(
        module, "report_page", "before report", "after report"
    ),
    "tasks.tracking.sending": lambda module: around(module, "_send_files", "before sending", "after sending"),
    "clusterucb_core.outcome": lambda module: around(module, "keep_result", "before result", "after result"),
}


class _Patching(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        """Find a module as usual, and change it once it has been executed."""
        if name not in PATCHES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def executed(module):
            execute(module)
            PATCHES[name](module)

        spec.loader.exec_module = executed
        return spec


if ARMED:
    sys.meta_path.insert(0, _Patching())
