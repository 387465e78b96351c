"""What the Prefect server holds for the workers: work pools, deployments, automations of their triggers."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import yaml

from .api import call, content, find
from .errors import StackError
from .layout import Stack, clean_environment

POOL_TYPE = "process"
TEMPLATE = Path("infra") / "work-pools" / f"{POOL_TYPE}.json"
DEPLOY_SECONDS = 300
OUTPUT_LINES = 25
NOT_FOUND = 404
_OF_A_TRIGGER = re.compile(r"__automation_\d+$")  # the name that `prefect deploy` gives


def declared_pools(stack: Stack) -> list[str]:
    """Return the work pools that the deployments of prefect.yaml name, in order.

    Raises:
        StackError: there is no such file, or a deployment has no name or names no pool.
    """
    return list(dict.fromkeys(item["pool"] for item in _declared(stack)))


def ensure_pool(stack: Stack, pool: str) -> str:
    """Make a work pool for processes where there is none, and return the type that the pool has.

    A pool that is there stays as it is: its template may have been edited in the pages of the server.
    """
    answer = call(stack, "GET", f"work_pools/{pool}")
    if answer.status_code == NOT_FOUND:
        template = json.loads((stack.checkout / TEMPLATE).read_text("utf-8"))
        body = {"name": pool, "type": POOL_TYPE, "base_job_template": template}
        answer = call(stack, "POST", "work_pools/", body)
    return content(answer, f"work pool {pool}")["type"]


def deploy(stack: Stack) -> None:
    """Bring all deployments of prefect.yaml to the server, those that are there already with their changes.

    Raises:
        StackError: Prefect refused one; the message has the end of what it printed.
    """
    environment = clean_environment(
        CLUSTERUCB_HOME=str(stack.home),
        CLUSTERUCB_CHECKOUT=str(stack.checkout),  # `prefect deploy` writes its value into the deployments
        PREFECT_API_URL=stack.prefect_api,
        PREFECT_HOME=str(stack.home / "prefect"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=stack.checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEPLOY_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        end = "\n".join(done.stdout.splitlines()[-OUTPUT_LINES:])
        raise StackError(f"`prefect deploy --all` failed with exit code {done.returncode}:\n{end}")


def workers_online(stack: Stack, pool: str, *, since: float) -> bool:
    """Return whether a worker of a pool has reported since a time, in seconds since 1970."""
    answer = call(stack, "POST", f"work_pools/{pool}/workers/filter", {})
    return any(
        item["status"] == "ONLINE" and datetime.fromisoformat(item["last_heartbeat_time"]).timestamp() > since
        for item in content(answer, f"the workers of {pool}")
    )


def undeclared_deployments(stack: Stack, pools: Sequence[str]) -> list[str]:
    """Return the server's deployments on these pools that prefect.yaml does not name, as `flow/deployment`.

    They are of an earlier prefect.yaml, or somebody's own: they keep their schedules and triggers.
    """
    names = {item["name"] for item in _declared(stack)}
    chosen = {"work_pools": {"name": {"any_": list(pools)}}}
    deployments = find(stack, "deployments", **chosen)
    flows = {flow["id"]: flow["name"] for flow in find(stack, "flows")}
    return sorted(
        f"{flows.get(item['flow_id'], '?')}/{item['name']}"
        for item in deployments
        if item["name"] not in names
    )


def remove_orphaned_automations(stack: Stack) -> list[str]:
    """Remove the automations of triggers whose deployment is gone, and return their names.

    Deploying again replaces a deployment's automations, but deleting it leaves them: each would fail at every
    event, and once the deployment is back look like a second copy.
    """
    known = {item["id"] for item in find(stack, "deployments")}
    removed: list[str] = []
    for automation in find(stack, "automations"):
        starts = [action.get("deployment_id") for action in automation["actions"]]
        if _OF_A_TRIGGER.search(automation["name"]) and starts and all(starts) and known.isdisjoint(starts):
            call(stack, "DELETE", f"automations/{automation['id']}").raise_for_status()
            removed.append(automation["name"])
    return removed


def _declared(stack: Stack) -> list[dict[str, str]]:
    path = stack.checkout / "prefect.yaml"
    try:
        deployments = yaml.safe_load(path.read_text("utf-8"))["deployments"]
        return [{"name": str(item["name"]), "pool": str(item["work_pool"]["name"])} for item in deployments]
    except FileNotFoundError as error:
        raise StackError(f"there is no {path}; it lists the deployments and their work pools") from error
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise StackError(
            f"{path} cannot be used ({error!r}); give `deployments`, each with a `name` and "
            "`work_pool: {name: ...}`"
        ) from error
