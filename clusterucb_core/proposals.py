"""What a folder holds that a run could be made of: pool, target files, models. Reads first rows only."""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from clusterucb_core.containers import COMPRESSION_SUFFIXES, inner_suffix, open_bytes
from clusterucb_core.errors import InvalidPool
from clusterucb_core.pool.formats import file_shape
from clusterucb_core.pool.rows import SUFFIXES
from clusterucb_core.targets.catalog import available_targets

# Folders below the working folder are looked into so deep, and so many files are looked at.
DEPTH = 3
MOST_FILES = 500
TARGET_SUFFIXES = (".jsonl", ".json")
VALIDATION_WORDS = frozenset(("validation", "valid", "val", "dev", "target"))
TEST_WORDS = frozenset(("test", "eval", "evaluation", "heldout"))
FIRST_BYTES = 1 << 16


@dataclass(frozen=True)
class Proposals:
    """Paths and patterns relative to the folder; None or empty where nothing was found."""

    pool: tuple[str, ...]
    validation: str | None
    test: str | None
    model: str | None


def find_proposals(folder: Path) -> Proposals:
    """Return what looks like a pool, a target and a model in a folder.

    A target file has a name such as `gsm8k_valid.jsonl`, or rows that say which split they belong to; of
    several the first by name is taken. Every other file whose rows have a known shape is of the pool.
    """
    models, files = _walk(folder)
    validation = [path for path in files if _is_target(path, VALIDATION_WORDS)]
    test = [path for path in files if _is_target(path, TEST_WORDS)]
    others = [path for path in files if path not in {*validation, *test}]
    return Proposals(
        pool=tuple(_patterns([path for path in others if _is_pool(path)], folder)),
        validation=_first(validation, folder),
        test=_first(test, folder),
        model=_first(models, folder),
    )


def target_name(validation: Path) -> str:
    """Return a name for the target of a validation file: of a bundled target where its name holds one."""
    stem = validation.name.split(".")[0]
    words = re.split(r"[^A-Za-z0-9]+", stem.lower())
    bundled = [name for name in available_targets() if name in words]
    return bundled[0] if bundled else re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+", "", stem) or "target"


def _walk(folder: Path, depth: int = DEPTH) -> tuple[list[Path], list[Path]]:
    """Return the model folders and the data files below a folder, sorted; a model's own files are none."""
    models, files = list[Path](), list[Path]()
    for path in _visible(folder):
        if path.is_dir():
            if (path / "config.json").is_file():
                models += [path] if any(path.glob("*.safetensors")) else []
            elif depth > 1:
                found = _walk(path, depth - 1)
                models, files = models + found[0], files + found[1]
        elif inner_suffix(path) in SUFFIXES:
            files.append(path)
    return models, files[:MOST_FILES]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except PermissionError:  # what cannot be read is not proposed
        return []


def _is_target(path: Path, words: frozenset[str]) -> bool:
    if inner_suffix(path) not in TARGET_SUFFIXES:
        return False
    return bool(words & set(re.split(r"[^a-z]+", path.name.lower()))) or has_split(path)


def has_split(path: Path) -> bool:
    """Tell whether the first row of a file says which split it belongs to."""
    try:
        with open_bytes(path) as stream:
            line = stream.readline(FIRST_BYTES)
        row: object = json.loads(line)
    except (OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError):
        return False
    return isinstance(row, dict) and row.get("split") in ("validation", "test")


def _is_pool(path: Path) -> bool:
    try:
        return file_shape(path) is not None
    except InvalidPool:
        return False


def _patterns(pool: Sequence[Path], folder: Path) -> Iterator[str]:
    """Yield a pattern for the files of a folder and kind where it matches nothing else, else their names."""
    chosen = set(pool)
    groups: dict[str, list[Path]] = {}
    for path in pool:
        pattern = (path.parent / f"*{_suffixes(path)}").relative_to(folder).as_posix()
        groups.setdefault(pattern, []).append(path)
    for pattern, paths in groups.items():
        fits = len(paths) > 1 and chosen.issuperset(folder.glob(pattern))
        yield from [pattern] if fits else [path.relative_to(folder).as_posix() for path in paths]


def _suffixes(path: Path) -> str:
    compressed = path.suffix if path.suffix.lower() in COMPRESSION_SUFFIXES else ""
    return path.with_suffix("").suffix + compressed if compressed else path.suffix


def _first(paths: Sequence[Path], folder: Path) -> str | None:
    return paths[0].relative_to(folder).as_posix() if paths else None
