"""Python code that a model brings along, which runs nowhere unless the configuration names it.

Reads the JSON and Python files of a model's folder. What is allowed is named by its content: code that was
changed since somebody read it is refused again.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from clusterucb_core.artifacts import file_digest, fingerprint
from clusterucb_core.errors import InvalidModel

# Where the configuration of a model or a tokenizer names classes that transformers would import.
AUTO_MAP = "auto_map"
NAMING_FILES = "*config*.json"


def may_run_code(folder: Path, allowed: tuple[str, ...]) -> bool:
    """Return whether the code of a model's folder may run; False where it has none that could.

    Args:
        folder: of a model or a tokenizer.
        allowed: names of code, as the error says them.

    Raises:
        InvalidModel: the folder names code that is not allowed, or that lies elsewhere.
    """
    maps = {path.name: _auto_map(path) for path in sorted(folder.glob(NAMING_FILES))}
    named = {file: auto_map for file, auto_map in maps.items() if auto_map}
    if not named:
        return False
    classes = sorted({text for auto_map in named.values() for text in _texts(auto_map)})
    if elsewhere := [text for text in classes if "--" in text]:
        raise InvalidModel(
            f"{folder} asks for code of another place ({elsewhere[0]}), which nobody can read here; put its "
            f"files into the folder and name them in {AUTO_MAP}, or use another model"
        )
    files = {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(folder.rglob("*.py"))}
    name = fingerprint("model code", named, files)
    if name in allowed:
        return True
    raise InvalidModel(
        f"{folder} brings code of its own ({', '.join(classes[:3])}; {', '.join(files) or 'no Python'}), "
        f"which would run with your rights; use another model, remove {AUTO_MAP} from {' and '.join(named)} "
        "where transformers knows the architecture itself, or read that code and set "
        f"model.trusted_code: [{name}]"
    )


def refuse_code_of_hub(base: str, auto_map: object) -> None:
    """Refuse a model of the hub that names code of its own.

    Args:
        base: its id.
        auto_map: what its configuration, loaded without running anything, says of code.

    Raises:
        InvalidModel: it names some.
    """
    if auto_map:
        raise InvalidModel(
            f"model.base={base!r} brings code of its own ({', '.join(sorted(_texts(auto_map))[:3])}), which "
            "is not run from the hub; download it to a folder, give that folder, and `clusterucb check` says "
            "how to allow code that you have read"
        )


def _auto_map(path: Path) -> object:
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # absent or damaged: what loads it says so
    return cast("dict[str, Any]", content).get(AUTO_MAP) if isinstance(content, dict) else None


def _texts(value: object) -> Iterator[str]:
    """Yield the names of classes in an `auto_map`, whose values may be lists with gaps."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in cast("Mapping[str, object]", value).values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in cast("list[object]", value):
            yield from _texts(part)
