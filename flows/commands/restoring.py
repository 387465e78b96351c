"""`restore`: a backup in the place of a damaged or lost catalog."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import AsJson
from flows.commands.running import configure
from flows.home import state_folder
from flows.rendering import counted, only_messages, print_json, print_table, say, size, tell

if TYPE_CHECKING:
    from clusterucb_core.restoration import Restored
    from clusterucb_core.store.restoring import BackupState

Named = Annotated[
    str | None,
    typer.Argument(
        metavar="[BACKUP]",
        help="A file that --list shows, or a path; the newest that is whole without one.",
        show_default=False,
    ),
]
Listing = Annotated[bool, typer.Option("--list", help="Read every backup whole, list them, change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def restore(
    backup: Named = None, listing: Listing = False, yes: Yes = False, as_json: AsJson = False
) -> None:
    """Put a backup in the place of the catalog.

    The catalog that is replaced is kept in backups/. What was withdrawn or erased since the backup stays so.
    """
    from clusterucb_core.restoration import choose_backup, list_backups, restore_catalog
    from clusterucb_core.workspace import Workspace

    workspace = Workspace(home=str(state_folder()))
    if listing:
        _show(list_backups(workspace), as_json=as_json)
        return
    configure()
    with only_messages():
        from flows.turns import turn  # with Prefect, which a list takes no time for

        with turn(state_folder(), wait=False):
            chosen = choose_backup(workspace, backup)
            if not yes:
                _ask(chosen)
            done = restore_catalog(chosen, workspace)
    if as_json:
        print_json(done.model_dump(mode="json"))
        return
    _print_done(done)


def _ask(chosen: "BackupState") -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"the catalog would be replaced by the backup of {_time(chosen)}, and nobody can be asked; "
            "repeat the command with --yes"
        )
    held = counted(len(chosen.selections), "selection version")
    typer.confirm(
        f"Replace the catalog by the backup of {_time(chosen)}, which holds {held}?", abort=True, err=True
    )


def _show(states: "list[BackupState]", *, as_json: bool) -> None:
    if as_json:
        print_json([state.model_dump(mode="json") for state in states])
        return
    if not states:
        say("no backups yet; `clusterucb maintenance` makes one")
        return
    rows = [
        [
            state.path.rpartition("/")[2],
            _time(state),
            state.kind,
            state.schema_version,
            len(state.selections),
            max(state.selections, default=None),
            size(state.bytes),
            state.fault or "whole",
        ]
        for state in states
    ]
    headers = ["backup", "made", "kind", "schema", "selections", "newest", "size", "state"]
    print_table(headers, rows, left=3)


def _print_done(done: "Restored") -> None:
    say(f"the catalog is that of {_time(done.backup)} again, {done.backup.path}")
    if done.replaced is not None:
        say(f"what it replaced is kept as {done.replaced}")
    if done.unread:
        tell(f"of that, {', '.join(done.unread)} could not be read: compare with it what you withdrew since")
    for table, number in done.carried.items():
        if number:
            say(f"{counted(number, 'row')} of {table} carried over")
    if done.erased.samples:
        say(f"{counted(done.erased.samples, 'sample')} erased again")
    if done.lost is None:
        tell(
            "which selection versions are lost could not be read; `clusterucb list` shows those that are held"
        )
    elif done.lost:
        say(
            f"lost: {counted(len(done.lost), 'selection version')}, {', '.join(map(str, done.lost))}; repeat "
            "their `clusterucb run`: it publishes again under new numbers, from artifacts that are kept"
        )
    if done.returned:
        say(f"back: {counted(len(done.returned), 'selection version')}, {', '.join(map(str, done.returned))}")
    for path in done.exports:
        tell(f"an erasure will not find the export {path} of a lost version: write it again, or delete it")


def _time(state: "BackupState") -> str:
    from clusterucb_core.store.backup_files import time_told

    return time_told(state.made_at)
