"""The reference of the command line, from the application that runs it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from flows.cli import command_line
from site_parts.markdown import table

PLACEHOLDERS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def commands_reference() -> str:
    """Return one section a command: what it does, how it is called, its arguments and options."""
    group: Any = get_command(command_line())
    commands = {name: command for name, command in group.commands.items() if not command.hidden}
    parts = [part for name, command in commands.items() for part in _section(name, command)]
    everywhere = [
        parameter for parameter in group.params if parameter.name in ("debug", "verbose", "version")
    ]
    return "\n".join([*parts, "\n## Options of every command\n", _parameters(everywhere)])


def _section(name: str, command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    words = [argument.metavar or argument.name.upper() for argument in arguments]
    yield f"\n## {name}\n"
    yield f"{command.help}\n"
    yield f"```text\nclusterucb {' '.join([name, *words, *(['[OPTIONS]'] if options else [])])}\n```\n"
    if arguments or options:
        yield _parameters([*arguments, *options])


def _parameters(parameters: list[Any]) -> str:
    rows = [(f"`{_name(parameter)}`", _help(parameter), _default(parameter)) for parameter in parameters]
    return table(("argument or option", "meaning", "default"), rows)


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    spelled = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return spelled
    kind = PLACEHOLDERS.get(parameter.type_descriptor.annotation, "VALUE")
    return f"{spelled} {parameter.metavar or kind}"


def _help(parameter: Any) -> str:
    return str(parameter.help or "")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    # a missing default is None, an empty list or a marker of the library, as the version has it
    plain = isinstance(parameter.default, str | int | float | bool)
    return f"`{parameter.default}`" if plain and parameter.default is not False else "–"
