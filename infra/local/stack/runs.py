"""Flow runs whose process is gone: to the server they still run, and hold the place of the next one."""

from .api import call, content, find
from .layout import Stack
from .processes import started_by

WORKER = "local"  # the name of the stack's workers on the server
UNDER_WAY = ("PENDING", "RUNNING", "CANCELLING")
LOST = "its process ended with the local stack or this machine; start it again: what it computed is kept"


def end_lost_runs(stack: Stack, pool: str, *, service: str) -> list[str]:
    """Record the end of the runs of a pool's worker that have no process, and return their names.

    Only while the worker is down: it may just have accepted a run that has no process yet. A run goes on
    where its worker alone was killed, and is left to end by itself.

    Args:
        stack: the stack, with its Prefect server running.
        pool: the work pool.
        service: the name that the pool's worker has among the services.
    """
    alive = {process.environ().get("PREFECT__FLOW_RUN_ID") for process in started_by(stack, service)}
    chosen = {
        "flow_runs": {"state": {"type": {"any_": list(UNDER_WAY)}}},
        "work_pools": {"name": {"any_": [pool]}},
    }
    lost = [
        run
        for run in find(stack, "flow_runs", **chosen)
        if run["labels"].get("prefect.worker.name") == WORKER and run["id"] not in alive
    ]
    for run in lost:
        kind = "CANCELLED" if run["state_type"] == "CANCELLING" else "CRASHED"
        state = {"type": kind, "name": kind.capitalize(), "message": LOST}
        body = {"state": state, "force": True}
        content(
            call(stack, "POST", f"flow_runs/{run['id']}/set_state", body), f"the end of run {run['name']}"
        )
    return sorted(run["name"] for run in lost)
