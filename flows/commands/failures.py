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
        raise Refused(str(error)) from error


@contextmanager
def during_run() -> Generator[None]:
    """Turn the errors of a block that does the work into `RunFailed`, whatever their cause."""
    try:
        yield
    except ClusterUcbError as error:
        raise RunFailed(str(error)) from error


def exit_code(error: Exception) -> int:
    """Return the exit code of a command that ended with an error."""
    if isinstance(error, TyperException):
        return error.exit_code
    return BAD_USAGE if isinstance(error, Refused | InvalidConfig) else FAILED


def explain(error: Exception) -> str:
    """Return what an error says; one that nobody foresaw also says its kind."""
    if isinstance(error, TyperException):
        return f"{error.format_message()}\n{HELP}"
    if isinstance(error, Refused | RunFailed | ClusterUcbError):
        return str(error)
    return f"{type(error).__name__}: {error}\n--debug shows where it happened"
