"""`maintenance`: garbage collection and a backup of the catalog."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import AsJson
from flows.commands.failures import during_run
from flows.commands.running import configure
from flows.rendering import count, only_messages, print_json, print_table, say, size

if TYPE_CHECKING:
    from flows.maintenance import Maintained


def maintenance(
    keep_runs: Annotated[
        int, typer.Option("--keep-runs", min=1, help="The newest runs whose artifacts stay.")
    ] = 10,
    keep_backups: Annotated[
        int, typer.Option("--keep-backups", min=1, help="The newest backups of the catalog that stay.")
    ] = 7,
    grace_hours: Annotated[
        float, typer.Option("--grace-hours", min=0, help="What is younger stays, whatever it is.")
    ] = 72.0,
    storage_root: Annotated[
        str | None,
        typer.Option(
            "--storage-root",
            help="Folder or object store of artifacts, where set; no other state folder may share it.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove unneeded artifacts, and save the catalog.

    An artifact stays while one of the newest runs needs it.
    """
    configure()
    with only_messages():
        from flows.maintenance import run_maintenance

        with during_run():
            done = run_maintenance(
                keep_runs=keep_runs,
                keep_backups=keep_backups,
                grace_hours=grace_hours,
                storage_root=storage_root,
                dry_run=dry_run,
            )
    if as_json:
        print_json(done.model_dump(mode="json"))
        return
    _print_done(done)


def _print_done(done: "Maintained") -> None:
    removed = done.removed
    rows = [[stage, count(n), size(removed.bytes[stage])] for stage, n in sorted(removed.artifacts.items())]
    if rows:
        print_table(["would be removed" if removed.dry_run else "removed", "artifacts", "size"], rows)
    else:
        say("every artifact is needed or within the grace: nothing to remove")
    say(f"\n{len(removed.kept_runs)} runs keep their artifacts")
    if done.backup is not None:
        say(f"backup of the catalog: {done.backup}")
