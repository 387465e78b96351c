"""A process that has made the imports of `clusterucb run` and forks one run after another from itself.

A run takes several seconds to import what it needs, which is most of what a resumed run of the demo takes.
Each line of stdin is `{"arguments": [...], "log": PATH}`; each answer is a line of stdout: `{"pid": n}` once
the run has begun, `{"code": n}` once it has ended (negative: by that signal). Standard output of the run goes
to `LOG.out`, its messages to `LOG.err`.
"""

import json
import os
import sys
import threading
from typing import Any


def main() -> None:
    """Import, then serve orders until stdin ends."""
    from flows.home import configure_services, state_folder

    configure_services(state_folder())  # before the imports, which read it
    import mlflow  # noqa: F401

    import flows.cli
    import flows.pipeline  # noqa: F401

    _say(ready=True)
    for line in sys.stdin:
        _serve(json.loads(line))


def _serve(order: dict[str, Any]) -> None:
    # memory allocators have helpers of their own, which know of forks; a thread of Python's would be lost
    if threading.active_count() > 1:
        raise RuntimeError(f"the imports have started threads, which a fork loses: {threading.enumerate()}")
    pid = os.fork()
    if not pid:
        _run(order)
    _say(pid=pid)
    _, status = os.waitpid(pid, 0)
    _say(code=os.waitstatus_to_exitcode(status))


def _run(order: dict[str, Any]) -> None:
    from flows.cli import main as command_line

    os.setsid()
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, f"{order['log']}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, f"{order['log']}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        os.dup2(os.open(name, flags, 0o600), number)
    sys.argv = ["clusterucb", *order["arguments"]]
    sys.exit(command_line())


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
