"""Commands of the contract that this version does not have."""

import typer

from flows.commands.failures import Refused

# Whatever else is on the line, the answer is about the command.
ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


def reselect(context: typer.Context) -> None:
    """Select again after the pool changed (not in this version)."""
    raise Refused(
        f"{context.info_name} is not available in this version; use `clusterucb run CONFIG`, which "
        "computes only what is new, then `clusterucb diff A B`"
    )


def report(context: typer.Context) -> None:
    """Write one page about a selection (not in this version)."""
    raise Refused(f"{context.info_name} is not available in this version; use `clusterucb show VERSION`")
