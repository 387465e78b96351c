"""Export a selection version for trainers, and write an export again; the files, and a row of the catalog.

What is written where is recorded, so that an erasure finds the text again (`renew_export`). Only the file
that `sample_file` names holds text of samples; what lies beside it tells of them.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from clusterucb_core.artifacts import file_digest
from clusterucb_core.errors import InvalidConfig
from clusterucb_core.export.card import CARD, CardFacts, card_text, is_ours
from clusterucb_core.export.chosen import Chosen, chosen_samples, conversations_of
from clusterucb_core.export.exchanges import Survey, survey
from clusterucb_core.export.options import ExportFormat, ExportOptions, ExportResult, added_columns
from clusterucb_core.export.sample_files import draft_of, replacement, sample_file, write_samples
from clusterucb_core.export.trainers import (
    DATASET_INFO,
    Described,
    axolotl_file,
    axolotl_text,
    dataset_info,
    names_export,
)
from clusterucb_core.near_names import did_you_mean
from clusterucb_core.store import ExportRecord, open_catalog, pool_version, record_export

logger = logging.getLogger(__name__)

AS_CHOSEN = ExportOptions()


def export_selection(
    catalog: Path,
    version: int | None,
    out: Path,
    *,
    format: ExportFormat = "jsonl",  # noqa: A002 - the name in the contract
    options: ExportOptions = AS_CHOSEN,
) -> ExportResult:
    """Write the samples of a selection version to a file or folder, in rank order unless told otherwise.

    Args:
        catalog: the DuckDB file.
        version: a selection version; None means the last period of the newest complete run.
        out: the file to write; an old one is replaced once the new one is complete. With `datasets` the
            folder: a new one, one without visible files, or that of an earlier export.
        format: `jsonl` has `{"messages": [...]}` in each line; `parquet` rank, sample_id, influence, cluster,
            source and messages; `alpaca` a JSON array of instruction, input, output, and system and history
            where there are any; `sharegpt` a JSON array of conversations, and system where there is one;
            `datasets` a Parquet file of messages where the hub has it, and a card.
        options: order, more columns, and which trainers to describe it to.

    Returns:
        What was written. Erased and withdrawn samples are left out.

    Raises:
        InvalidConfig: the format is unknown, `out` cannot be written in it, there are no weights, or what is
            to be written beside it does not fit what is there; nothing was written.
        MissingArtifact: there is no catalog.
        UnknownVersion: the catalog holds no such version.
    """
    if format not in get_args(ExportFormat):
        known = get_args(ExportFormat)
        advice = " ".join(filter(None, [did_you_mean(format, known), f"known formats: {', '.join(known)}"]))
        raise InvalidConfig(f"export format {format!r} is unknown; {advice}")
    _check_place(out, format)
    chosen = chosen_samples(catalog, version, options)
    export = Export(catalog, out, format, options, chosen, survey(conversations_of(chosen.samples)))
    beside = dict(_beside(export))
    _warn(export)
    with replacement(sample_file(out, format)) as draft:
        write_samples(chosen.samples, draft, shape=format, added=added_columns(options))
        # first the record, then the name: no text lies where nobody would look for it
        _record(export, draft)
    for path, text in beside.items():
        with replacement(path) as draft:
            draft.write_text(text, encoding="utf-8", newline="\n")
    return ExportResult(
        path=str(out),
        n=len(chosen.samples),
        format=format,
        version=chosen.summary.selection_version,
        reshaped=export.reshaped,
        files=tuple(str(path) for path in beside),
    )


def renew_export(catalog: Path, record: ExportRecord) -> Literal["rewritten", "gone", "changed"]:
    """Write a recorded export again without the samples erased or withdrawn since; ranks and weights stay.

    What was written beside it follows, where it is still there and still ours to change.

    Args:
        catalog: the DuckDB file.
        record: what was written where.

    Returns:
        `gone` where the file is no more; `changed` where it holds something else than was written, which is
        then left as it is.
    """
    out, shape = Path(record.path), cast("ExportFormat", record.format)
    options = ExportOptions.model_validate(record.options)
    path = sample_file(out, shape)
    if not path.is_file():
        return "gone"
    chosen = chosen_samples(catalog, record.selection_version, options)
    export = Export(catalog, out, shape, options, chosen, survey(conversations_of(chosen.samples)))
    draft = draft_of(path)
    try:
        write_samples(chosen.samples, draft, shape=shape, added=added_columns(options))
        # the second digest: an earlier attempt has renewed the file
        if file_digest(path) not in (record.digest, file_digest(draft)):
            return "changed"
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _renew_beside(export)
    _record(export, path)
    return "rewritten"


@dataclass(frozen=True)
class Export:
    """One export: where it goes, how, and the samples that go there."""

    catalog: Path
    out: Path
    shape: ExportFormat
    options: ExportOptions
    chosen: Chosen
    holds: Survey

    @property
    def reshaped(self) -> int:
        """Conversations whose turns the format joins or moves."""
        return self.holds.reshaped if self.shape in ("alpaca", "sharegpt") else 0

    @property
    def described(self) -> Described:
        """The export as trainers see it."""
        return Described(self.out, self.shape, self.holds)


def _check_place(out: Path, shape: ExportFormat) -> None:
    if shape != "datasets":
        if out.is_dir():
            raise InvalidConfig(f"{out} is a folder; name the file to write")
        return
    if out.exists() and not out.is_dir():
        raise InvalidConfig(f"{out} is a file; format datasets writes a folder, name another")
    card = out / CARD
    if card.is_file() and is_ours(card.read_text(encoding="utf-8")):
        return
    if any(_is_visible(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()):
        raise InvalidConfig(
            f"{out} holds files that no export wrote; name a new folder, or one without visible files"
        )


def _is_visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _beside(export: Export) -> Iterator[tuple[Path, str]]:
    """Give the files to write beside the samples, and their text; others' parts of them stay."""
    if export.shape == "datasets":
        yield export.out / CARD, card_text(_card_facts(export), _text_of(export.out / CARD))
    if "llama-factory" in export.options.trainers:
        path = export.out.with_name(DATASET_INFO)
        if path == export.out:
            raise InvalidConfig(f"{DATASET_INFO} describes the export and cannot be it; name it otherwise")
        yield path, dataset_info(export.described, _text_of(path))
    if "axolotl" in export.options.trainers:
        yield axolotl_file(export.out), axolotl_text(export.described)


def _renew_beside(export: Export) -> None:
    """Bring what tells of the samples to their present number; what others have taken over stays."""
    card, info = export.out / CARD, export.out.with_name(DATASET_INFO)
    if export.shape == "datasets" and (old := _text_of(card)) is not None:
        _renew(card, old, lambda text: card_text(_card_facts(export), text))
    if "llama-factory" in export.options.trainers and (old := _text_of(info)) is not None:
        described = export.described
        _renew(
            info, old, lambda text: dataset_info(described, text) if names_export(text, described) else text
        )


def _renew(path: Path, old: str, change: Callable[[str], str]) -> None:
    try:
        new = change(old)
    except InvalidConfig as error:
        # it holds no text of a sample, and an erasure must come to its end
        logger.warning("%s is left as it is: %s", path, error)
        return
    if new != old:
        with replacement(path) as draft:
            draft.write_text(new, encoding="utf-8", newline="\n")


def _card_facts(export: Export) -> CardFacts:
    summary = export.chosen.summary
    with open_catalog(export.catalog, read_only=True) as con:
        pool = pool_version(con, summary.pool_version)
    counts = export.chosen.samples["source"].value_counts()
    return CardFacts(
        name=export.out.name,
        summary=summary,
        pool_samples=pool.n_samples,
        counts=dict(counts.iter_rows()),
        options=export.options,
    )


def _warn(export: Export) -> None:
    version = export.chosen.summary.selection_version
    for count, what in ((export.chosen.erased, "erased"), (export.chosen.withdrawn, "withdrawn")):
        if count:
            logger.warning("%d %s samples of version %d are left out", count, what, version)
    if export.reshaped:
        logger.warning(
            "%d conversations do not alternate between user and assistant: their turns are joined, and read "
            "again they are samples of another id",
            export.reshaped,
        )
    elif export.holds.reshaped and "llama-factory" in export.options.trainers:
        logger.warning(
            "%d conversations do not alternate between user and assistant: LLaMA-Factory skips them in this "
            "format; alpaca and sharegpt join their turns",
            export.holds.reshaped,
        )


def _record(export: Export, written: Path) -> None:
    record = ExportRecord(
        path=str(export.out.absolute()),
        selection_version=export.chosen.summary.selection_version,
        format=export.shape,
        digest=file_digest(written),
        options=export.options.model_dump(mode="json"),
    )
    with open_catalog(export.catalog) as con:
        record_export(con, record)


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
