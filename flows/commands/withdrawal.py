"""`withdraw`: take samples out of the pool, and on request their text and features out of everything."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import AsJson
from flows.home import state_folder
from flows.rendering import counted, print_json, print_table, say, tell

if TYPE_CHECKING:
    from clusterucb_core.erasure import ErasureResult
    from clusterucb_core.workspace import Workspace

HOW = {
    "sample": "trained on a sample",
    "start": "went on from a training that was",
    "unknown": "made before trainings kept the ids of their samples: it may have been",
}

SampleIds = Annotated[
    list[str] | None, typer.Argument(metavar="[IDS]...", help="Sample ids.", show_default=False)
]
IdFile = Annotated[
    Path | None, typer.Option("--from", metavar="FILE", help="A file of sample ids, one a line.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the catalog.", show_default=False)]
Erase = Annotated[
    bool, typer.Option("--erase", help="Erase text and features too; end every run before that.")
]
Roots = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-root",
        metavar="ROOT",
        help="A folder or object store to erase from besides those that the catalog knows; may be repeated.",
    ),
]


def withdraw(
    reason: Reason,
    sample_ids: SampleIds = None,
    id_file: IdFile = None,
    erase: Erase = False,
    storage_roots: Roots = None,
    as_json: AsJson = False,
) -> None:
    """Withdraw samples: the next ingest leaves them out.

    Samples with the same messages are withdrawn with them. With --erase, text and features are erased from
    the catalog, its backups, artifacts and exports; what was interrupted is finished by the same command.
    """
    wanted = _wanted(sample_ids or [], id_file)
    if not reason.strip():
        raise typer.BadParameter("--reason is empty; say why, the catalog keeps it")

    from clusterucb_core.errors import MissingArtifact
    from clusterucb_core.store import open_catalog, withdraw_samples
    from clusterucb_core.workspace import Workspace

    workspace = Workspace(home=str(state_folder()))
    if not workspace.catalog.is_file():
        raise MissingArtifact(f"there is no catalog at {workspace.catalog}; run `clusterucb run` first")
    with open_catalog(workspace.catalog) as con:
        every = withdraw_samples(con, wanted, reason=reason)
    result = _erase(every, workspace, reason=reason, roots=storage_roots or []) if erase else None
    if as_json:
        erased = None if result is None else result.model_dump(mode="json")
        print_json({"withdrawn": every, "named": wanted, "erasure": erased})
        return
    copies = len(every) - len(wanted)
    say(
        f"{counted(len(every), 'sample')} withdrawn"
        + (f", {copies:,} of them copies with the same messages" if copies else "")
        + "; the next ingest leaves them out"
    )
    if result is not None:
        _print_erasure(result)


def _erase(
    sample_ids: list[str], workspace: "Workspace", *, reason: str, roots: list[str]
) -> "ErasureResult":
    from clusterucb_core.erasure import erase_samples  # with all stages, which to withdraw takes no time for
    from clusterucb_core.workspace import Workspace
    from flows.turns import turn

    places = [Workspace(home=workspace.home, storage_root=root).artifacts for root in roots]
    # a run that is under way could write again what is erased
    with turn(state_folder()):
        return erase_samples(sample_ids, workspace, reason=reason, roots=places)


def _wanted(named: list[str], id_file: Path | None) -> list[str]:
    listed: list[str] = []
    if id_file is not None:
        try:
            listed = id_file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"--from {id_file} cannot be read: {error}") from error
    wanted = sorted({*named, *listed})
    if not wanted:
        raise typer.BadParameter("no sample is named; give IDS, or --from FILE with one id a line")
    return wanted


def _print_erasure(result: "ErasureResult") -> None:
    counts = {
        "catalog rows without their text now": result.catalog.samples,
        "quarantined rows without their text now": result.catalog.quarantine,
        "backups rewritten": result.backups,
        **{f"artifacts rewritten: {stage}": number for stage, number in result.artifacts.items()},
        "exports rewritten": len(result.exports["rewritten"]),
        "leftovers of killed processes removed": result.drafts,
    }
    print_table(["erased", ""], [[name, f"{number:,}"] for name, number in counts.items()], gap=True)
    for path in result.exports["gone"]:
        say(f"the export {path} is gone: nothing was erased there")
    for path in result.exports["changed"]:
        tell(f"the export {path} was changed after it was written: remove the samples there yourself")
    for path in result.absent_roots:
        tell(f"the artifact folder {path} is not there: if it comes back, repeat this command")
    for address, number in result.object_stores.items():
        say(
            f"{counted(number, 'artifact')} renewed in {address}; remove older versions where the bucket "
            "keeps them, and the copies below TMPDIR of the Ray nodes that worked for it"
        )
    if result.trainings:
        say("\nweights cannot forget; train again without the samples, and delete these:")
        rows = [[training.path, HOW[training.how]] for training in result.trainings]
        print_table(["training", "why"], rows, left=2)
    say("\nsource files are yours and were left as they are; remove the rows there:")
    rows = [[origin.path, origin.row_number, origin.source, origin.sample_id] for origin in result.origins]
    print_table(["still in", "row", "source", "sample"], rows, left=1)
