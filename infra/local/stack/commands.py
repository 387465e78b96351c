"""The commands `up` and `down`; messages go to stderr, the addresses to stdout."""

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from . import layout
from .errors import StackError
from .layout import DEFAULT_PORTS, QUIET, Stack, port_variable
from .pools import (
    POOL_TYPE,
    declared_pools,
    deploy,
    ensure_pool,
    remove_orphaned_automations,
    undeclared_deployments,
)
from .postgres import make_databases, postgres
from .processes import Service, running, start, stop, wait_ready
from .runs import end_lost_runs
from .services import WORKER_PREFIX, known_services, mlflow_server, prefect_server, worker, worker_name

WAIT_SECONDS = 180


def up(arguments: Sequence[str] | None = None) -> int:
    """Start what is not running, print the addresses, and return the exit code.

    Args:
        arguments: what follows `up`; None for the arguments of this process.
    """
    parser = argparse.ArgumentParser(
        prog="up", description="Start the local stack, or what of it is not running."
    )
    for name, port in DEFAULT_PORTS.items():
        text = f"port of {name} on {layout.HOST} (or {port_variable(name)}; {port})"
        parser.add_argument(f"--{name}-port", metavar="PORT", help=text)
    parser.add_argument(
        "--wait", type=float, default=WAIT_SECONDS, metavar="SECONDS", help="for each service"
    )
    parsed = parser.parse_args(arguments)
    stack = _stack(parser, parsed)
    return _guarded(lambda: _up(stack, seconds=parsed.wait))


def down(arguments: Sequence[str] | None = None) -> int:
    """Stop what is running, remove the data if asked to, and return the exit code.

    Args:
        arguments: what follows `down`; None for the arguments of this process.
    """
    parser = argparse.ArgumentParser(prog="down", description="Stop the local stack; its data stay.")
    parser.add_argument(
        "--delete", action="store_true", help="remove databases, artifacts, logs and passwords"
    )
    parsed = parser.parse_args(arguments)
    stack = _stack(parser, parsed)
    return _guarded(lambda: _down(stack, delete=parsed.delete))


def _stack(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> Stack:
    """Return the stack that is meant; where a port is unusable, say so and exit as at bad usage."""
    given = {name: getattr(parsed, f"{name}_port", None) for name in DEFAULT_PORTS}
    try:
        ports = {name: layout.port(name, given=text) for name, text in given.items()}
    except StackError as error:
        parser.error(str(error))
    if len(set(ports.values())) != len(ports):
        parser.error(f"every service needs a port of its own, but they are {ports}")
    return Stack(checkout=layout.CHECKOUT, home=layout.state_folder(), ports=ports)


def _up(stack: Stack, *, seconds: float) -> None:
    pools = declared_pools(stack)  # first, so that an unusable file starts nothing
    stack.folder.mkdir(parents=True, exist_ok=True)
    with _alone(stack):
        _bring_up(stack, [postgres(stack)], seconds=seconds)
        make_databases(stack)
        _bring_up(stack, [prefect_server(stack), mlflow_server(stack)], seconds=seconds)
        kinds = {pool: ensure_pool(stack, pool) for pool in pools}
        _tell("deploying what prefect.yaml declares")
        deploy(stack)
        _tell_leftovers(stack, pools)
        ours = [pool for pool in pools if kinds[pool] == POOL_TYPE]
        _end_lost_runs(stack, [pool for pool in ours if not running(stack, worker_name(pool))])
        _bring_up(stack, [worker(stack, pool) for pool in ours], seconds=seconds)
        for pool in (pool for pool in pools if kinds[pool] != POOL_TYPE):
            _tell(f"work pool {pool} is of type {kinds[pool]}: start its worker where its runs belong")
        _write_env(stack)
    print(f"Prefect  {stack.prefect_url}")
    print(f"MLflow   {stack.mlflow_url}")
    print(f"Logs     {stack.folder / 'logs'}")
    print(f"Use it from a shell:  source {shlex.quote(str(stack.folder / 'env'))}")


def _down(stack: Stack, *, delete: bool) -> None:
    if not stack.folder.exists():
        _tell(f"there is no stack in {stack.folder}")
        return
    with _alone(stack):
        services = known_services(stack)
        workers = [name for name in services if name.startswith(WORKER_PREFIX)]
        stopped = [name for name in workers if stop(stack, name)]
        if server := running(stack, "prefect"):
            stack = replace(stack, ports={**stack.ports, "prefect": server.port or stack.ports["prefect"]})
            try:
                _end_lost_runs(stack, [name.removeprefix(WORKER_PREFIX) for name in workers])
            except StackError as error:
                # a server that is ill has to be stopped all the same; `up` tries again
                _tell(f"the end of runs that were under way could not be recorded: {error}")
        stopped += [name for name in services if name not in workers and stop(stack, name)]
    _tell(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
    if delete:
        shutil.rmtree(stack.folder)
        _tell(f"removed {stack.folder}: databases, MLflow's artifacts, logs and passwords")
    else:
        _tell(f"the data stay in {stack.folder}; `down --delete` removes them")


def _end_lost_runs(stack: Stack, pools: Sequence[str]) -> None:
    for pool in pools:
        for name in end_lost_runs(stack, pool, service=worker_name(pool)):
            _tell(f"run {name} is recorded as ended, as its process is gone; started again, it goes on")


def _tell_leftovers(stack: Stack, pools: Sequence[str]) -> None:
    for name in remove_orphaned_automations(stack):
        _tell(f"removed automation {name}, whose deployment is gone")
    for name in undeclared_deployments(stack, pools):
        _tell(f"{name} is deployed but not in prefect.yaml; `prefect deployment delete {name}` removes it")


def _bring_up(stack: Stack, services: Sequence[Service], *, seconds: float) -> None:
    """Start services side by side, then wait for each."""
    for service in services:
        _tell(f"{service.name}: {'starting' if start(stack, service) else 'runs already'}")
    for service in services:
        wait_ready(stack, service, seconds=seconds)


def _write_env(stack: Stack) -> None:
    variables = {
        "CLUSTERUCB_HOME": str(stack.home),
        "CLUSTERUCB_CHECKOUT": str(stack.checkout),
        "PREFECT_API_URL": stack.prefect_api,
        "MLFLOW_TRACKING_URI": stack.mlflow_url,
        **QUIET,
    }
    path = stack.folder / "env"
    path.touch(0o600)
    path.write_text(
        "".join(f"export {name}={shlex.quote(text)}\n" for name, text in variables.items()), "utf-8"
    )


@contextlib.contextmanager
def _alone(stack: Stack) -> Generator[None]:
    """Hold the stack's lock, so that no second `up` or `down` works on it meanwhile."""
    with (stack.folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(
                f"another `up` or `down` is at work on {stack.folder}; wait for its end"
            ) from error
        yield


def _guarded(command: Callable[[], None]) -> int:
    try:
        command()
    except StackError as error:
        _tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _tell("interrupted; `down` stops what was started, `up` goes on")
        return 130
    return os.EX_OK


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
