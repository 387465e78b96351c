"""Erasing withdrawn samples: artifacts, backups, the catalog, exports, and last of all the record of it.

Reads and rewrites the catalog, its backups, the artifacts below all roots and in their object stores, and the
recorded exports. Each step
can be killed and repeated; what needs the text of the samples comes before the catalog loses it.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clusterucb_core.artifacts import discard_artifact
from clusterucb_core.erasure.feature_rows import erase_from_clustering, erase_from_shard
from clusterucb_core.erasure.folders import manifest_of, stage_of, sweep, write_manifest
from clusterucb_core.erasure.pool_tables import erase_from_pool
from clusterucb_core.erasure.stored_copies import current_mirror, fetch_stored, renew_stored
from clusterucb_core.erasure.token_tables import erase_from_tokens
from clusterucb_core.erasure.traces import Traces, shows_trace, traces_of
from clusterucb_core.erasure.trainings import TrainedOn, trained_on
from clusterucb_core.errors import StaleArtifact, UnknownSample
from clusterucb_core.export import renew_export
from clusterucb_core.frozen import Frozen
from clusterucb_core.object_store import mirrored_address
from clusterucb_core.report import FORMAT as REPORT
from clusterucb_core.report import renew_report
from clusterucb_core.store import (
    ERASED,
    ErasedRows,
    artifact_roots,
    catalog_backups,
    erase_rows,
    exports_holding,
    open_catalog,
    record_erasures,
    remove_drafts,
    rewrite_catalog,
    sample_origins,
    withdrawn_in,
)
from clusterucb_core.workspace import Workspace

logger = logging.getLogger(__name__)

_Erase = Callable[[Path], bool]

TRAINING = "training"
# Stages, besides features, that hold texts of samples, tell of them, or learned from them.
STAGES = ("ingest", "tokens", "candidates", "draws", "clustering", TRAINING)


class Origin(Frozen):
    """Where a sample was read: the file is the user's and is left as it is."""

    sample_id: str
    source: str
    path: str | None
    row_number: int | None


class ErasureResult(Frozen):
    """What an erasure did, and what it cannot do.

    Attributes:
        sample_ids: the samples erased.
        catalog: rows of the catalog that lost their text.
        artifacts: artifacts rewritten, by stage.
        backups: backups rewritten.
        drafts: leftovers of killed processes removed.
        exports: recorded exports that chose a sample: those rewritten, those that are gone, and those that
            somebody changed since, which are left as they are.
        trainings: whose weights learned, or may have learned, from a sample.
        origins: the source rows, which may still hold the text.
        absent_roots: artifact folders recorded once that are not there: text in them is not erased.
        object_stores: how many artifacts were renewed or removed in each object store, by its address.
    """

    sample_ids: tuple[str, ...]
    catalog: ErasedRows
    artifacts: dict[str, int]
    backups: int
    drafts: int
    exports: dict[str, tuple[str, ...]]
    trainings: tuple[TrainedOn, ...]
    origins: tuple[Origin, ...]
    absent_roots: tuple[str, ...]
    object_stores: dict[str, int]


@dataclass(frozen=True)
class _Request:
    """The samples to erase, where they came from, what gives their text away, and where to look.

    `mirrors` are those of the roots that mirror an object store.
    """

    sample_ids: frozenset[str]
    origins: tuple[Origin, ...]
    traces: Traces
    roots: tuple[Path, ...]
    mirrors: tuple[Path, ...]


def erase_samples(
    sample_ids: Sequence[str], workspace: Workspace, *, reason: str, roots: Iterable[Path] = ()
) -> ErasureResult:
    """Erase the text and the features of withdrawn samples wherever the project has written them.

    No run may be going on that was started before the samples were withdrawn: it may write them again.

    Args:
        sample_ids: samples that have been withdrawn.
        workspace: the state folder and its artifact root.
        reason: why, kept in the record.
        roots: artifact roots to look in besides those recorded in the catalog.

    Raises:
        UnknownSample: a sample was not withdrawn.
        MissingArtifact: there is no catalog.
        CatalogBusy: another process kept it.
        StorageUnavailable: an object store could not be read or written.
    """
    request = _request(sample_ids, workspace, roots)
    for root in request.mirrors:
        fetch_stored(root, STAGES)
    present = [root for root in request.roots if root.is_dir()]
    artifacts, drafts = erase_artifacts(present, request.sample_ids, request.traces)
    stored = {str(mirrored_address(root)): renew_stored(root, STAGES) for root in request.mirrors}
    # the first time while the catalog still tells the texts; then what was copied from it meanwhile
    backups = erase_backups(workspace, request, done=set())
    catalog = erase_catalog(workspace.catalog, request)
    backups |= erase_backups(workspace, request, done=backups)
    drafts += remove_drafts(workspace)
    exports = renew_exports(workspace, request.sample_ids)
    trainings = trained_on(present, request.sample_ids)
    with open_catalog(workspace.catalog) as con:
        record_erasures(con, sorted(request.sample_ids), reason=reason)
    return ErasureResult(
        sample_ids=tuple(sorted(request.sample_ids)),
        catalog=catalog,
        artifacts=artifacts,
        backups=len(backups),
        drafts=drafts,
        exports=exports,
        trainings=tuple(trainings),
        origins=request.origins,
        absent_roots=tuple(str(root) for root in request.roots if not root.is_dir()),
        object_stores=stored,
    )


def erase_artifacts(
    roots: Iterable[Path], sample_ids: frozenset[str], traces: Traces
) -> tuple[dict[str, int], int]:
    """Take samples out of all artifacts; return how many of each stage were rewritten, and drafts removed.

    A damaged one is removed whole, and counts as rewritten: what is in it nobody can tell.
    """
    stages: dict[str, _Erase] = {
        "ingest": partial(erase_from_pool, sample_ids=sample_ids, traces=traces),
        "tokens": partial(erase_from_tokens, sample_ids=sample_ids),
        "candidates": partial(_erase_details, sample_ids=sample_ids),
        "draws": partial(_erase_details, sample_ids=sample_ids),
        "clustering": partial(erase_from_clustering, sample_ids=sample_ids),
    }
    counts, drafts = Counter[str](), 0
    for root in roots:
        spaces = _folders(root / "features")
        parents = (*(root / stage for stage in stages), root / TRAINING, *spaces)
        drafts += sum(sweep(parent) for parent in parents)
        for stage, erase in stages.items():
            counts[stage] += sum(_erased(root, folder, erase) for folder in _folders(root / stage))
        shards = [folder for space in spaces for folder in _folders(space)]
        erase = partial(erase_from_shard, sample_ids=sample_ids)
        counts["features"] += sum(_erased(root, folder, erase) for folder in shards)
    logger.info("artifacts rewritten: %s", dict(counts))
    return dict(counts), drafts


def erase_catalog(path: Path, request: _Request) -> ErasedRows:
    """Take samples out of one catalog file or backup, and their bytes with them."""
    shows_text = partial(shows_trace, request.traces)
    return rewrite_catalog(path, lambda con: erase_rows(con, sorted(request.sample_ids), shows_text))


def erase_backups(workspace: Workspace, request: _Request, *, done: set[Path]) -> set[Path]:
    """Take samples out of the backups of the catalog that have not been done; return which these were."""
    left = [path for path in catalog_backups(workspace) if path not in done]
    for path in left:
        erase_catalog(path, request)
    return set(left)


def renew_exports(workspace: Workspace, sample_ids: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Write exports and reports that show one of the samples again; return paths by what became of them."""
    with open_catalog(workspace.catalog, read_only=True) as con:
        records = exports_holding(con, sorted(sample_ids))
    outcomes = {
        record.path: renew_report(workspace, record)
        if record.format == REPORT
        else renew_export(workspace.catalog, record)
        for record in records
    }
    return {
        kind: tuple(path for path, outcome in outcomes.items() if outcome == kind)
        for kind in ("rewritten", "gone", "changed")
    }


def _request(sample_ids: Sequence[str], workspace: Workspace, roots: Iterable[Path]) -> _Request:
    ids = frozenset(sample_ids)
    with open_catalog(workspace.catalog) as con:
        kept = sorted(ids - withdrawn_in(con))
        if kept:
            raise UnknownSample(
                f"{len(kept)} of {len(ids)} samples were not withdrawn, the first {kept[0]!r}; withdraw them "
                "before they are erased, so that no run reads them again"
            )
        found = sample_origins(con, sorted(ids))
        known = artifact_roots(con)
    home = Workspace(home=workspace.home).artifacts
    places = {Path(root).absolute() for root in (home, workspace.artifacts, *roots, *known)}
    mirrors = {mirror for root in places if (mirror := current_mirror(root, workspace.home)) is not None}
    # what mirrored a store from elsewhere is looked into where it is still there, and is missed by nobody
    places = {root for root in places if mirrored_address(root) is None or root.is_dir()} | mirrors
    texts = [json.loads(text) for text in found["messages"].drop_nulls()]
    origins = tuple(Origin(**row) for row in found.drop("messages").iter_rows(named=True))
    return _Request(ids, origins, traces_of(texts), tuple(sorted(places)), tuple(sorted(mirrors)))


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("[!.]*") if path.is_dir())


def _erased(root: Path, folder: Path, erase: _Erase) -> bool:
    try:
        return erase(folder)
    except StaleArtifact as error:
        logger.warning("%s; the artifact is removed, and computed again where it is needed", error)
        discard_artifact(root, stage_of(folder), folder.name)
        return True


def _erase_details(folder: Path, sample_ids: frozenset[str]) -> bool:
    """Take the words out of what a manifest says of the samples it leaves out."""
    content, _ = manifest_of(folder)
    told = [
        row
        for name in ("leaks", "unusable", "exclusions")
        for row in content.get(name, ())
        if row["sample_id"] in sample_ids and row["detail"] != ERASED
    ]
    for row in told:
        row["detail"] = ERASED
    if told:
        write_manifest(folder, content)
    return bool(told)
