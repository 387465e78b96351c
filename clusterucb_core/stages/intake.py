"""From pool and target files to the tokens that a run may draw from.

Reads source files; writes the artifacts `target`, `tokens`, `candidates` and `shared`.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from clusterucb_core.artifacts import artifact_file, fingerprint, new_artifact, read_manifest
from clusterucb_core.errors import InvalidPool
from clusterucb_core.lm.tokens import TokenTable, open_tokens, write_tokens
from clusterucb_core.pacing import Pace, paced
from clusterucb_core.pool.ingest import (
    PoolSettings,
    ingest,
    ingest_fingerprint,
    limit_samples,
    read_sample_ids,
    read_samples,
    source_files,
)
from clusterucb_core.records import ArtifactRef, CodeTest, Exclusion, Message, Sample, Target, TargetRow
from clusterucb_core.stages.models import ModelRef, open_chat
from clusterucb_core.targets.catalog import (
    TargetSettings,
    load_target,
    target_digest,
    test_samples,
    validation_samples,
)
from clusterucb_core.targets.leaks import find_leaks
from clusterucb_core.workspace import StageSpec, Workspace, location, resumable, stage_key, written

logger = logging.getLogger(__name__)


class IngestSpec(StageSpec):
    """The pool sources, named by their content and by the samples that are left out of it."""

    stage: str = "ingest"
    version: int = 1
    settings: PoolSettings = location()  # pyright: ignore[reportAssignmentType]
    base_folder: str = location()  # pyright: ignore[reportAssignmentType]
    withdrawn: tuple[str, ...] = location(default=())  # pyright: ignore[reportAssignmentType]


class TargetSpec(StageSpec):
    """The target files, named by their rows."""

    stage: str = "target"
    version: int = 1
    settings: TargetSettings = location()  # pyright: ignore[reportAssignmentType]
    base_folder: str = location()  # pyright: ignore[reportAssignmentType]
    digest: str


class TokensSpec(StageSpec):
    """Samples of a pool or a target, rendered and tokenized for a model."""

    stage: str = "tokens"
    version: int = 1
    source: ArtifactRef
    split: Literal["pool", "validation", "test"]
    model: ModelRef
    max_samples: int | None = None
    seed: int = 0


class CandidatesSpec(StageSpec):
    """The samples of a pool that a target's selection may draw."""

    stage: str = "candidates"
    version: int = 1
    pool: ArtifactRef
    tokens: ArtifactRef
    target: ArtifactRef


class SharedSpec(StageSpec):
    """The candidates that any target of a run may draw, or those that every one may, named by the samples.

    So what is computed for one target is found by a run for another, as long as no pool sample leaks.
    """

    stage: str = "shared"
    version: int = 1
    candidates: tuple[ArtifactRef, ...] = location()  # pyright: ignore[reportAssignmentType]
    of: Literal["any", "every"] = location()  # pyright: ignore[reportAssignmentType]
    digest: str


def ingest_spec(
    settings: PoolSettings, base_folder: Path, *, withdrawn: frozenset[str] = frozenset()
) -> IngestSpec:
    """Return the spec of the ingest stage; reads every source file once to digest it.

    Args:
        settings: of the pool.
        base_folder: the folder that relative paths start from.
        withdrawn: ids of the samples to leave out.
    """
    key = ingest_fingerprint(settings, source_files(settings, base_folder), withdrawn)
    return IngestSpec(
        settings=settings, base_folder=str(base_folder), withdrawn=tuple(sorted(withdrawn)), key=key
    )


@resumable
def run_ingest(spec: IngestSpec, workspace: Workspace) -> ArtifactRef:
    """Read, validate and de-duplicate the pool's sources."""
    ref = ingest(
        spec.settings,
        base_folder=Path(spec.base_folder),
        artifact_root=workspace.artifacts,
        withdrawn=frozenset(spec.withdrawn),
    )
    if ref.fingerprint != stage_key(spec):
        raise InvalidPool(
            "a pool source changed while it was being read; run again when the files are at rest"
        )
    return ref


def target_spec(settings: TargetSettings, base_folder: Path) -> TargetSpec:
    """Return the spec of a target; loads and validates its files."""
    digest = target_digest(load_target(settings, base_folder))
    return TargetSpec(settings=settings, base_folder=str(base_folder), digest=digest)


@resumable
def run_target(spec: TargetSpec, workspace: Workspace) -> ArtifactRef:
    """Keep the rows of a target as an artifact, so that later stages all see the same ones."""
    target = load_target(spec.settings, Path(spec.base_folder))
    with new_artifact(workspace.artifacts, spec.stage, stage_key(spec), {"name": target.name}) as folder:
        (folder / "target.json").write_text(json.dumps(asdict(target)), encoding="utf-8")
    return written(spec, workspace)


def read_target(ref: ArtifactRef) -> Target:
    """Return the target of a `target` artifact."""
    content = json.loads(artifact_file(ref, "target.json").read_text(encoding="utf-8"))
    rows = {split: tuple(_target_row(row) for row in content[split]) for split in ("validation", "test")}
    return Target(content["name"], rows["validation"], rows["test"])


def validation_ids(ref: ArtifactRef) -> list[str]:
    """Return the ids of a target's validation rows in their order."""
    return [row.row_id for row in read_target(ref).validation]


@resumable
def run_tokens(spec: TokensSpec, workspace: Workspace) -> ArtifactRef:
    """Tokenize the samples of a pool or of one split of a target."""
    return write_tokens(
        workspace.artifacts,
        stage_key(spec),
        _samples_of(spec),
        open_chat(spec.model),
        max_length=spec.model.settings.max_length,
    )


@resumable
def run_candidates(spec: CandidatesSpec, workspace: Workspace) -> ArtifactRef:
    """Take the samples out that leak the target's test rows or have nothing to learn from."""
    table = open_tokens(spec.tokens)
    unusable = {exclusion.sample_id for exclusion in table.exclusions}
    considered = set(table.sample_ids) | unusable
    pace = Pace(logger, "looking for leaks", "samples", len(considered))
    leaks = find_leaks(read_target(spec.target), paced(read_samples(spec.pool, considered), pace))
    if leaks:
        logger.warning("%d pool samples repeat test rows of the target and are left out", len(leaks))
    out = unusable | {leak.sample_id for leak in leaks}
    kept = sorted(considered - out)
    if not kept:
        raise InvalidPool(f"none of {len(considered)} pool samples can be used: see the table exclusions")
    manifest: dict[str, Any] = {
        "n_pool": len(considered),
        "n": len(kept),
        "digest": fingerprint(kept),
        "leaks": [asdict(leak) for leak in leaks],
        "unusable": [asdict(exclusion) for exclusion in table.exclusions],
    }
    with new_artifact(workspace.artifacts, spec.stage, stage_key(spec), manifest) as folder:
        _write_ids(folder, kept)
    return written(spec, workspace)


def shared_spec(candidates: Sequence[ArtifactRef], of: Literal["any", "every"]) -> SharedSpec:
    """Return the spec of what the targets of a run share; reads their candidates to digest them.

    Args:
        candidates: a `candidates` artifact for each target, all over one pool.
        of: `any` for the samples that some target may draw, `every` for those that all of them may.

    Raises:
        InvalidPool: no sample is left.
    """
    kept = _shared_ids(candidates, of)
    if not kept:
        raise InvalidPool(
            f"every pool sample leaks into the test rows of one of {len(candidates)} targets, so nothing is "
            "left to warm up on; run the targets apart"
        )
    digest = fingerprint(kept, pool_size(candidates[0]))
    return SharedSpec(candidates=tuple(candidates), of=of, digest=digest)


@resumable
def run_shared(spec: SharedSpec, workspace: Workspace) -> ArtifactRef:
    """Keep the samples that the targets of a run share."""
    kept = _shared_ids(spec.candidates, spec.of)
    manifest: dict[str, Any] = {"n_pool": pool_size(spec.candidates[0]), "n": len(kept)}
    with new_artifact(workspace.artifacts, spec.stage, stage_key(spec), manifest) as folder:
        _write_ids(folder, kept)
    return written(spec, workspace)


def candidate_ids(ref: ArtifactRef) -> list[str]:
    """Return the ids of a `candidates` or `shared` artifact, sorted."""
    return artifact_file(ref, "sample_ids.txt").read_text(encoding="utf-8").split("\n")


def candidate_exclusions(ref: ArtifactRef) -> tuple[Exclusion, ...]:
    """Return the samples that a `candidates` artifact leaves out, with their reasons."""
    manifest = read_manifest(ref)
    return tuple(Exclusion(**item) for name in ("leaks", "unusable") for item in manifest[name])


def pool_size(ref: ArtifactRef) -> int:
    """Return N, the pool samples that fractions of a run count from, exclusions included."""
    return int(read_manifest(ref)["n_pool"])


def open_candidates(candidates: ArtifactRef, tokens: ArtifactRef) -> tuple[list[str], TokenTable]:
    """Return the candidate ids and the token table that holds them."""
    return candidate_ids(candidates), open_tokens(tokens)


def _shared_ids(candidates: Sequence[ArtifactRef], of: Literal["any", "every"]) -> list[str]:
    ids = [set(candidate_ids(ref)) for ref in candidates]
    return sorted(set.union(*ids) if of == "any" else set.intersection(*ids))


def _write_ids(folder: Path, sample_ids: Sequence[str]) -> None:
    (folder / "sample_ids.txt").write_text("\n".join(sample_ids), encoding="utf-8")


def _samples_of(spec: TokensSpec) -> Iterable[Sample]:
    """Return the samples to tokenise, which log how far they have been read."""
    if spec.split == "pool":
        every = read_sample_ids(spec.source)
        wanted = set(limit_samples(every, max_samples=spec.max_samples, seed=spec.seed))
        pace = Pace(logger, "tokenising the pool", "samples", len(wanted))
        return paced(read_samples(spec.source, wanted), pace)
    target = read_target(spec.source)
    rows = validation_samples(target) if spec.split == "validation" else test_samples(target)
    return paced(rows, Pace(logger, f"tokenising the {spec.split} rows", "rows", len(rows)))


def _target_row(row: dict[str, Any]) -> TargetRow:
    messages = tuple(Message(**message) for message in row["messages"])
    code = row.get("code")  # absent in artifacts of rows without tests that an earlier version wrote
    return TargetRow(
        row["row_id"],
        row["subtask"],
        messages,
        tuple(row["choices"]),
        row["answer_index"],
        None if code is None else CodeTest(**code),
    )
