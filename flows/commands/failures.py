"""How commands fail: the exit codes, and which error has which."""

from collections.abc import Generator
from contextlib import contextmanager

from typer import TyperException

from clusterucb_core.errors import ClusterUcbError, InvalidConfig

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130
HELP = "clusterucb --help lists the commands, clusterucb COMMAND --help their options"


class Refused(Exception):
    """What a command was given cannot be used; nothing was started."""


class RunFailed(Exception):
    """A run was started and did not come to its end."""


@contextmanager
def before_start() -> Generator[None]:
    """Turn the errors of a block that only looks at the input into `Refused`."""
    try:
        yield
    except ClusterUcbError as error:
        raise Refused(_told(error)) from error
    except Exception as error:
        if (told := _fault(error)) is not None:
            raise Refused(told) from error
        raise


@contextmanager
def during_run() -> Generator[None]:
    """Turn the errors of a block that does the work into `RunFailed`, whatever their cause."""
    try:
        yield
    except ClusterUcbError as error:
        raise RunFailed(_told(error)) from error


def exit_code(error: Exception) -> int:
    """Return the exit code of a command that ended with an error."""
    if isinstance(error, TyperException):
        return error.exit_code
    return BAD_USAGE if isinstance(error, Refused | InvalidConfig) else FAILED


def explain(error: Exception) -> str:
    """Return what an error says; one that nobody foresaw also says its kind."""
    if isinstance(error, TyperException):
        return f"{error.format_message()}\n{HELP}"
    if isinstance(error, Refused | RunFailed):
        return str(error)
    if isinstance(error, ClusterUcbError):
        return _told(error)
    if (told := _fault(error)) is not None:
        return told
    return f"{type(error).__name__}: {error}\n--debug shows where it happened"


def _told(error: ClusterUcbError) -> str:
    """Return what an error says, or what lies behind it: a disk that is full or cannot be written."""
    return _fault(error) or str(error)


def _fault(error: Exception) -> str | None:
    # imported here: most commands end well, and soon
    from clusterucb_core.storage_faults import storage_fault
    from clusterucb_core.workspace import Workspace
    from flows.home import state_folder
    from flows.orchestrator import server_fault

    places = Workspace(home=str(state_folder())).places
    told = storage_fault(error, places) or server_fault(error)
    return None if told is None else str(told)
