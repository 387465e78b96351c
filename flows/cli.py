"""The command line `clusterucb`: its commands, and what becomes of their errors."""

import atexit
import importlib.metadata
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from flows.commands import running, versions, withdrawal
from flows.commands.comparison import compare
from flows.commands.demonstration import demo
from flows.commands.doctor import doctor
from flows.commands.exporting import export
from flows.commands.failures import BAD_USAGE, FAILED, INTERRUPTED, exit_code, explain
from flows.commands.grouping import GroupedCommands
from flows.commands.initialisation import init
from flows.commands.maintenance import maintenance
from flows.commands.reporting import report
from flows.commands.reselection import reselect
from flows.commands.restoring import restore
from flows.rendering import log_to_stderr, tell

# These may stand anywhere on the line.
GLOBAL_FLAGS = ("--debug", "--verbose")
# Set by the shell's completion script.
COMPLETION_VARIABLE = "_CLUSTERUCB_COMPLETE"
LOOK = "Look at selections, and hand them on"
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Begin": {"demo": demo, "init": init, "doctor": doctor},
    "Select": {
        "check": running.check,
        "ingest": running.ingest,
        "run": running.run,
        "reselect": reselect,
        "compare": compare,
    },
    LOOK: {
        "list": versions.list_versions,
        "show": versions.show,
        "diff": versions.diff,
        "report": report,
        "export": export,
    },
    "Keep house": {"withdraw": withdrawal.withdraw, "maintenance": maintenance, "restore": restore},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: what follows `clusterucb`; None for the arguments of this process.
    """
    flags, ordered = _split_flags(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup has one of them ignored
                signal.signal(number, _interrupt)
    if arguments is None and "--debug" not in flags:
        atexit.register(_end_quietly)  # registered first, so that it runs last
    # a shell that asks for completions shows no log
    log = nullcontext() if COMPLETION_VARIABLE in os.environ else log_to_stderr(verbose="--verbose" in flags)
    with log:
        try:
            returned = get_command(command_line()).main(
                [*flags, *ordered], prog_name="clusterucb", standalone_mode=False
            )
            sys.stdout.flush()
        except BrokenPipeError:
            # whoever read the result has left; Python's own flush at its end must not fail either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except (KeyboardInterrupt, typer.Abort):
            returned = INTERRUPTED
        except Exception as error:  # noqa: BLE001 - the last border: every error becomes a line and an exit code
            if "--debug" in flags:
                traceback.print_exception(error)
            tell(f"error: {explain(error)}")
            return exit_code(error)
    if returned == INTERRUPTED:
        tell("interrupted; what was computed is kept, so the same command goes on from there")
        if arguments is None:
            _leave(INTERRUPTED)
    return returned if isinstance(returned, int) else 0


def command_line() -> typer.Typer:
    """Return the commands as one typer application, in the order in which its help lists them."""
    app = typer.Typer(
        cls=GroupedCommands, add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    app.callback(invoke_without_command=True)(_top)
    for group, commands in COMMANDS.items():
        for name, command in commands.items():
            app.command(name, rich_help_panel=group)(command)
    return app


def _top(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show progress where stderr is no terminal.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Choose what to fine-tune on: gradient-influence data selection under a fixed gradient budget."""
    if version:
        typer.echo(importlib.metadata.version("clusterucb"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(BAD_USAGE)


def _interrupt(number: int, frame: object) -> NoReturn:
    """Take a request to end, as of a container that is stopped, like Ctrl-C."""
    raise KeyboardInterrupt


def _leave(code: int) -> NoReturn:
    """End this process as Python does, but for taking modules apart, which after PyTorch takes seconds."""
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    os._exit(code)


def _end_quietly() -> None:
    """Close stderr to what DuckDB's binding reports after a run: what threads held to the very end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the global flags and the other arguments; what follows `--` is no flag."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [argument for argument in arguments[:end] if argument in GLOBAL_FLAGS]
    others = [argument for argument in arguments[:end] if argument not in GLOBAL_FLAGS]
    return flags, [*others, *arguments[end:]]
