"""Which files a pool is made of: the settings, and the files that they name."""

import glob
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from clusterucb_core.artifacts import file_digest, fingerprint
from clusterucb_core.containers import COMPRESSION_SUFFIXES, inner_suffix
from clusterucb_core.errors import InvalidPool
from clusterucb_core.frozen import Frozen
from clusterucb_core.pool.formats import FormatName
from clusterucb_core.pool.rows import SUFFIXES

# Raise it whenever the same files and settings give other samples.
INGEST_VERSION = 2

DedupeRule = Literal["prompt", "content", "none"]


class SourceSettings(Frozen):
    """One file, or all files that match a pattern."""

    path: str = Field(
        title="Path",
        min_length=1,
        description="File or pattern such as data/*.jsonl.gz; relative to the configuration file's folder. "
        "Known are .jsonl, .json, .csv, .tsv and .parquet, also with .gz or .zst after them.",
    )
    format: FormatName = Field(
        default="auto",
        title="Format",
        description="Shape of the rows; auto finds it out for each file.",
    )
    name: str | None = Field(
        default=None,
        title="Name",
        min_length=1,
        description="Name of the source in every table; without one each file has its own name.",
    )


class PoolSettings(Frozen):
    """What the pool is made of and which samples it keeps."""

    sources: tuple[SourceSettings, ...] = Field(
        title="Sources",
        min_length=1,
        description="The files, in the order in which repeats give way to what came first.",
    )
    min_chars: int = Field(
        default=1,
        ge=0,
        title="Fewest characters",
        description="A sample with fewer characters in all its turns together goes to quarantine.",
    )
    dedupe: DedupeRule = Field(
        default="prompt",
        title="De-duplication",
        description="prompt: one sample for each prompt, case and white space aside; content: one for each "
        "text; none: keep repeats. The first in source, path and row order stays.",
    )
    max_samples: int | None = Field(
        default=None,
        ge=1,
        title="Most samples",
        description="Work on so many samples of the pool, the same ones for the same seed; empty: on all.",
    )


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the pool, the name of its source, and the format that was asked for."""

    path: Path
    name: str
    format: FormatName


def source_files(settings: PoolSettings, base_folder: Path) -> tuple[SourceFile, ...]:
    """Return the files of all sources, each once, in source order and sorted within a pattern.

    Args:
        settings: the pool's settings.
        base_folder: the folder that relative paths start from.

    Raises:
        InvalidPool: a source matches no file, or names a folder or a file of an unknown kind.
    """
    found: dict[Path, SourceFile] = {}
    for source in settings.sources:
        for path in _matches(source.path, base_folder):
            name = source.name or source_name(path)
            found.setdefault(path.resolve(), SourceFile(path, name, source.format))
    return tuple(found.values())


def source_name(path: Path) -> str:
    """Return a file's name without its container and compression suffixes."""
    name = path.name
    for suffixes in (COMPRESSION_SUFFIXES, SUFFIXES):
        if name.lower().endswith(suffixes):
            name = name[: name.rindex(".")]
    return name


def ingest_fingerprint(
    settings: PoolSettings, files: Sequence[SourceFile], withdrawn: Collection[str] = ()
) -> str:
    """Return the fingerprint of the pool that these files make: their bytes, names and the rules.

    `max_samples` is not in it: the whole pool is stored. The ids of withdrawn samples are, where there are
    any.

    Raises:
        InvalidPool: a file cannot be read.
    """
    parts = [[_digest(file.path), file.path.name, file.name, file.format] for file in files]
    left_out = [sorted(withdrawn)] if withdrawn else []
    return fingerprint("ingest", INGEST_VERSION, parts, settings.min_chars, settings.dedupe, *left_out)


def _matches(pattern: str, base_folder: Path) -> list[Path]:
    literal = base_folder / pattern
    try:
        is_folder = literal.is_dir()
    except OSError as error:  # longer than a path can be
        raise InvalidPool(
            f"pool source {pattern[:80]!r} is no path ({error.strerror}); correct pool.sources.path"
        ) from error
    if is_folder:
        raise InvalidPool(
            f"pool source {literal} is a folder; name its files, for instance {pattern}/*.jsonl.gz"
        )
    if literal.exists():
        paths = [literal]
    else:
        names = glob.glob(pattern, root_dir=base_folder, recursive=True)  # noqa: PTH207 - takes absolute ones too
        paths = sorted(path for path in (base_folder / name for name in names) if not path.is_dir())
    if not paths:
        raise InvalidPool(
            f"pool source {pattern!r} matches no file in {base_folder}; correct pool.sources.path"
        )
    for path in paths:
        if path.name != path.name.encode("utf-8", "replace").decode():
            raise InvalidPool(
                f"the name of {path.name!a} in {base_folder} is not UTF-8, so no table can hold it; rename it"
            )
        if inner_suffix(path) not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise InvalidPool(
                f"{path} ends in no known suffix: {known}, also with .gz or .zst; convert it, "
                f"or narrow the pool source {pattern!r}"
            )
    return paths


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise InvalidPool(f"{path} cannot be read: {error}; check its permissions and its disk") from error
