"""Commands of the contract that this version does not have."""

import typer

from flows.commands.failures import Refused

# Whatever else is on the line, the answer is about the command.
ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


def report(context: typer.Context) -> None:
    """Write one page about a selection (not in this version)."""
    raise Refused(f"{context.info_name} is not available in this version; use `clusterucb show VERSION`")
