"""Processes that outlive the command that started them; reads and writes their pid files and logs.

A pid alone does not say whose process it is: after a crash or a reboot another program can have it. A pid
file therefore also holds when the process began, as the kernel tells it; one that began at another time is
not ours. What a service started itself is found by a variable that it inherits.
"""

import contextlib
import json
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from .errors import StackError
from .layout import HOST, Stack, port_variable

MARK = "CLUSTERUCB_STACK_SERVICE"
STOP_SECONDS = 30
LOG_LINES = 25
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Service:
    """A process that the stack keeps running.

    Attributes:
        name: its name in messages, and that of its pid file and log.
        line: its command line; what stands there, every user of the machine can read.
        environment: all of its variables.
        port: the port of loopback that it listens on; None where it does not listen.
        ready: tells whether it does its work, given when it was started, in seconds since 1970.
        account: the user that it runs as; None for the present one.
    """

    name: str
    line: Sequence[str]
    environment: Mapping[str, str]
    port: int | None
    ready: Callable[[float], bool]
    account: pwd.struct_passwd | None = None


@dataclass(frozen=True)
class Running:
    """What a pid file holds.

    Attributes:
        pid: the process.
        began: when the process began, as the kernel tells it.
        started_at: when it was started, in seconds since 1970.
        line: the command line that it was started with.
        port: the port of loopback that it listens on; None where it does not listen.
    """

    pid: int
    began: str
    started_at: float
    line: list[str]
    port: int | None


def running(stack: Stack, name: str) -> Running | None:
    """Return the process of a service, None where there is none or the one with its pid is another."""
    try:
        record = Running(**json.loads(stack.pid_file(name).read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StackError(
            f"{stack.pid_file(name)} cannot be read ({error}); end the process of {name} yourself, if there "
            "is one, and remove the file"
        ) from error
    return record if _began(record.pid) == record.began else None


def start(stack: Stack, service: Service) -> bool:
    """Start a service in a session of its own, unless it runs; return whether it was started.

    Raises:
        StackError: it runs with another command line, or its port is taken.
    """
    if present := running(stack, service.name):
        if present.line != list(service.line):
            raise StackError(
                f"{service.name} (process {present.pid}) runs with other settings, "
                f"`{' '.join(present.line)}`; run infra/local/down first"
            )
        return False
    if service.port is not None:
        _kill(started_by(stack, service.name))  # a server that was killed leaves children on its port
        _require_free(service.port, service.name)
    _launch(stack, service)
    return True


def wait_ready(stack: Stack, service: Service, *, seconds: float) -> None:
    """Return once a service does its work.

    Raises:
        StackError: it ended, or was not ready in time; the message has the end of its log.
    """
    end = time.monotonic() + seconds
    while present := running(stack, service.name):
        if service.ready(present.started_at):
            return
        if time.monotonic() > end:
            raise StackError(
                f"{service.name} is not ready after {seconds:g} s; {_end_of_log(stack, service)}"
            )
        time.sleep(POLL_SECONDS)
    raise StackError(f"{service.name} ended; {_end_of_log(stack, service)}")


def stop(stack: Stack, name: str) -> bool:
    """Stop a service and what it started; return whether there was anything to stop."""
    present = running(stack, name)
    if present:
        process = psutil.Process(present.pid)
        # SIGINT asks PostgreSQL to stop without waiting for its clients to leave
        process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
        _, alive = psutil.wait_procs([process], timeout=STOP_SECONDS)
        _kill(alive)
    left = started_by(stack, name)
    _kill(left)
    stack.pid_file(name).unlink(missing_ok=True)
    return bool(present or left)


def started_by(stack: Stack, name: str) -> list[psutil.Process]:
    """Return the living processes that a service is, or began, however far down."""
    mark, found = _mark(stack, name), list[psutil.Process]()
    for process in psutil.process_iter():
        # of a process of somebody else neither is known, and none of ours belongs to somebody else
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _launch(stack: Stack, service: Service) -> None:
    stack.private("pids")
    log = stack.private("logs") / f"{service.name}.log"
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    account = service.account
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - the line is made by this package
            list(service.line),
            cwd=stack.checkout if account is None else "/",
            env={**service.environment, MARK: _mark(stack, service.name)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
        )
    record = Running(
        process.pid, _began(process.pid) or "ended", time.time(), list(service.line), service.port
    )
    temporary = stack.pid_file(service.name).with_suffix(".new")
    temporary.write_text(json.dumps(asdict(record)), "utf-8")
    temporary.replace(stack.pid_file(service.name))


def _began(pid: int) -> str | None:
    """Return when a process began, in a form that survives a change of the clock; None where it has ended."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if not psutil.LINUX:
            return str(process.create_time())
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None
    return (
        f"{boot} {fields[19]}"  # clock ticks since boot: field 22 of all, of which the first two are cut off
    )


def _mark(stack: Stack, name: str) -> str:
    return f"{stack.folder}#{name}"


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=STOP_SECONDS)


def _require_free(port: int, service: str) -> None:
    """Raise where something listens on a port of loopback, with the process if it can be known."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection just closed is no listener
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise StackError(
                f"port {port} for {service} is in use by {_listener(port)}; stop that, or choose another "
                f"with --{service}-port or {port_variable(service)}"
            ) from error


def _listener(port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return "a process that only its owner may name"
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
        if listens and connection.pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "another process"


def _end_of_log(stack: Stack, service: Service) -> str:
    log = stack.log(service.name)
    lines = log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join([f"the end of {log}:", *lines]) if lines else f"its log {log} is empty"
