"""Makes a report of what catalog and artifacts hold, and writes it where an erasure finds it again."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from clusterucb_core.artifacts import file_digest, new_artifact
from clusterucb_core.errors import InvalidConfig, MissingArtifact, StaleArtifact
from clusterucb_core.export.sample_files import draft_of, replacement
from clusterucb_core.frozen import Frozen
from clusterucb_core.records import ArtifactRef
from clusterucb_core.report.content import ReportContent, read_content
from clusterucb_core.report.page import render_page
from clusterucb_core.report.pool_map import PoolMap, map_pool
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.summary import TargetOutcome
from clusterucb_core.store import ExportRecord, open_catalog, record_export, selection_summary
from clusterucb_core.trails import trail_of
from clusterucb_core.workspace import StageSpec, Workspace, location, resumable, stage_key, written

logger = logging.getLogger(__name__)

FORMAT = "report"
PAGE = "report.html"


class ReportResult(Frozen):
    """The page written, its size, and the selection version that it is about."""

    path: str
    n_bytes: int
    version: int


class ReportSpec(StageSpec):
    """The page that a run leaves about the last selection of a target; it holds no text of a sample."""

    stage: str = "reports"
    version: int = 1
    run_id: str
    selection_key: str
    selection_version: int
    draws: DrawSpec = location()  # pyright: ignore[reportAssignmentType]


def run_reports(outcomes: Sequence[TargetOutcome], run_id: str, workspace: Workspace) -> dict[str, str]:
    """Write a page about the last selection of each target of a run, without the texts of samples.

    A tracker keeps these pages where no erasure reaches them, so they name samples by their ids only.

    Returns:
        The name of each page in a tracker, and the file that holds it.
    """
    pages: dict[str, str] = {}
    for outcome in outcomes:
        with open_catalog(workspace.catalog, read_only=True) as con:
            summary = selection_summary(con, outcome.versions[-1])
        spec = ReportSpec(
            run_id=run_id,
            selection_key=summary.selection_key,
            selection_version=summary.selection_version,
            draws=outcome.chosen.periods[-1].spec,
        )
        name = PAGE if len(outcomes) == 1 else f"report-{outcome.target}.html"
        pages[name] = str(Path(_keep_page(spec, workspace).path) / PAGE)
    return pages


@resumable
def _keep_page(spec: ReportSpec, workspace: Workspace) -> ArtifactRef:
    content = read_content(workspace.catalog, spec.selection_version, texts=False)
    manifest = {"selection_version": spec.selection_version}
    with new_artifact(workspace.artifacts, spec.stage, stage_key(spec), manifest) as folder:
        page = report_page(workspace, content, spec=spec.draws)
        (folder / PAGE).write_text(page, encoding="utf-8", newline="\n")
    return written(spec, workspace)


def write_report(workspace: Workspace, version: int | None, out: Path) -> ReportResult:
    """Write the page about a selection version.

    The catalog records where, so that an erasure finds the texts of samples in it.

    Args:
        workspace: the state folder, and the artifact root with the features for the map.
        version: a selection version; None means the last period of the newest complete run.
        out: the file to write; an old one is replaced once the new one is complete.

    Raises:
        InvalidConfig: `out` is a folder.
        MissingArtifact: there is no catalog.
        UnknownVersion: the catalog holds no such version.
    """
    if out.is_dir():
        raise InvalidConfig(f"{out} is a folder; name the file to write")
    content = read_content(workspace.catalog, version, texts=True)
    number = content.summary.selection_version
    with replacement(out) as draft:
        draft.write_text(report_page(workspace, content), encoding="utf-8", newline="\n")
        # first the record, then the name: no text lies where nobody would look for it
        _record(workspace.catalog, out, draft, version=number)
    return ReportResult(path=str(out), n_bytes=out.stat().st_size, version=number)


def renew_report(workspace: Workspace, record: ExportRecord) -> Literal["rewritten", "gone", "changed"]:
    """Write a recorded report again, without the texts that were erased or withdrawn since.

    Returns:
        `gone` where the file is no more; `changed` where it holds something else than was written, which is
        then left as it is.
    """
    out = Path(record.path)
    if not out.is_file():
        return "gone"
    content = read_content(workspace.catalog, record.selection_version, texts=True)
    draft = draft_of(out)
    try:
        draft.write_text(report_page(workspace, content), encoding="utf-8", newline="\n")
        # the second digest: an earlier attempt has renewed the file
        if file_digest(out) not in (record.digest, file_digest(draft)):
            return "changed"
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    _record(workspace.catalog, out, out, version=record.selection_version)
    return "rewritten"


def report_page(workspace: Workspace, content: ReportContent, *, spec: DrawSpec | None = None) -> str:
    """Return the page about a selection version.

    Args:
        workspace: where artifacts lie.
        content: what the catalog holds.
        spec: the draws of the version; looked for in the trail of its run where they are not given.
    """
    try:
        spec = spec or _spec_of(workspace, content)
        laid_out: PoolMap | str = map_pool(
            spec, content.selected["sample_id"].to_list(), _where(spec, workspace)
        )
    except (MissingArtifact, StaleArtifact) as error:
        logger.info("the report of version %d has no map: %s", content.summary.selection_version, error)
        laid_out = str(error)
    return render_page(content, laid_out=laid_out, digests={} if spec is None else _digests(spec))


def _spec_of(workspace: Workspace, content: ReportContent) -> DrawSpec:
    version = content.summary.selection_version
    trail = trail_of(content.summary.run_id, workspace)
    for target in trail.targets:
        if version in target.versions:
            return target.chosen.periods[target.versions.index(version)].spec
    raise MissingArtifact(f"run {trail.run_id[:8]} has left nothing of version {version}; run it again")


def _where(spec: DrawSpec, workspace: Workspace) -> Workspace:
    """Return the workspace with the artifact root that a selection was made in."""
    return Workspace(home=workspace.home, storage_root=str(Path(spec.candidates.path).parents[1]))


def _digests(spec: DrawSpec) -> dict[str, str]:
    """Return the fingerprints of what a selection was drawn with."""
    refs = {"target rows": spec.target, "tokens": spec.tokens, "candidates": spec.candidates}
    found = {name: ref.fingerprint for name, ref in refs.items()}
    if spec.clustering is not None:
        found["clustering"] = spec.clustering.fingerprint
    for number, space in enumerate(spec.spaces, start=1):
        found["model digest"] = space.model.digest
        found[f"features at checkpoint {number}"] = stage_key(space)
        if space.checkpoint is not None:
            found[f"training of checkpoint {number}"] = space.checkpoint.training.fingerprint
    return found


def _record(catalog: Path, out: Path, written: Path, *, version: int) -> None:
    record = ExportRecord(
        path=str(out.absolute()), selection_version=version, format=FORMAT, digest=file_digest(written)
    )
    with open_catalog(catalog) as con:
        record_export(con, record)
