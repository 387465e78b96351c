"""The demo folder: pool, target, tiny model and configuration, written once.

Reads and writes the demo folder: `demo.yaml`, `target.jsonl`, `pool/`, `model/`, and last `demo.json`, which
marks it as finished.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from clusterucb_core.artifacts import file_digest
from clusterucb_core.demo import dirt
from clusterucb_core.demo.configuration import demo_config
from clusterucb_core.demo.families import FAMILY_SIZES
from clusterucb_core.demo.pool import write_pool
from clusterucb_core.demo.target import TEST_ROWS, VALIDATION_ROWS, draw_target, write_target
from clusterucb_core.demo.tiny_model import FULL_RECIPE, TinyModelRecipe, write_tiny_model

DEMO_VERSION = 1  # raised whenever the generated content changes
MARKER = "demo.json"
CONFIG = "demo.yaml"
TARGET = "target.jsonl"
POOL = "pool"
MODEL = "model"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """The files of a demo: configuration, pool files, target file, model folder."""

    config: Path
    pool: tuple[Path, ...]
    target: Path
    model: Path


def write_demo(folder: Path, *, seed: int = 0, recipe: TinyModelRecipe = FULL_RECIPE) -> DemoFiles:
    """Write the demo's files, or reuse them where the folder holds the finished ones of this seed and recipe.

    A half-written or damaged folder is written anew. The configuration is yours to edit: an edited one is
    kept as long as the rest is whole.

    Args:
        folder: the demo folder; made where it is absent. Only the demo's own names in it are touched.
        seed: the seed of everything generated.
        recipe: size and training of the tiny model.

    Returns:
        Where everything lies.
    """
    marker = folder / MARKER
    made_from: dict[str, Any] = {"version": DEMO_VERSION, "seed": seed, "recipe": repr(recipe)}
    if not _is_whole(folder, made_from):
        logger.info("writing the demo's pool, target and tiny model to %s", folder)
        marker.unlink(missing_ok=True)
        _write_content(folder, seed=seed, recipe=recipe)
        marker.write_text(json.dumps(_marker_content(folder, made_from), indent=1) + "\n", encoding="utf-8")
    pool = tuple(folder / POOL / name for name in sorted(path.name for path in (folder / POOL).iterdir()))
    return DemoFiles(folder / CONFIG, pool, folder / TARGET, folder / MODEL)


def _write_content(folder: Path, *, seed: int, recipe: TinyModelRecipe) -> None:
    for name in (POOL, MODEL):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / POOL).mkdir(parents=True)
    validation, test = draw_target(seed=seed)
    write_target(folder / TARGET, validation, test)
    files = write_pool(folder / POOL, test[: dirt.LEAKS], seed=seed)
    write_tiny_model(folder / MODEL, seed=seed, recipe=recipe)
    relative = {family: PurePosixPath(POOL, path.name) for family, path in files.items()}
    (folder / CONFIG).write_text(
        demo_config(relative, target=TARGET, model=MODEL, seed=seed), encoding="utf-8"
    )


def _marker_content(folder: Path, made_from: dict[str, Any]) -> dict[str, Any]:
    return {
        **made_from,
        "samples": dict(FAMILY_SIZES),
        "quarantined": {family: dict(reasons) for family, reasons in dirt.QUARANTINED.items()},
        "repeated": dict(dirt.REPEATED),
        "leaked": dict(dirt.LEAKED),
        "cleaned": {family: dict(kinds) for family, kinds in dirt.CLEANED.items()},
        "target": {"validation": VALIDATION_ROWS, "test": TEST_ROWS},
        "digests": _digests(folder),
    }


def _digests(folder: Path) -> dict[str, str]:
    paths = [folder / TARGET, *(folder / POOL).rglob("*"), *(folder / MODEL).rglob("*")]
    return {
        path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(paths) if path.is_file()
    }


def _is_whole(folder: Path, made_from: dict[str, Any]) -> bool:
    marker = folder / MARKER
    if not marker.is_file() or not (folder / CONFIG).is_file():
        return False
    try:
        content: object = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        return False  # a marker cut short by a full disk
    if not isinstance(content, dict):
        return False
    seen = cast("dict[str, Any]", content)
    same = {key: seen.get(key) for key in made_from} == made_from
    return same and (folder / TARGET).is_file() and seen.get("digests") == _digests(folder)
