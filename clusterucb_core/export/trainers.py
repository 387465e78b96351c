"""What trainers need to find an export: an entry of LLaMA-Factory's `dataset_info.json`, Axolotl's YAML.

LLaMA-Factory: `data/README.md` and `src/llamafactory/data/parser.py` of its repository. Where an entry has
`columns` or `tags`, those that it does not name are off, and a named column must be in the file.
Axolotl: `docs/dataset-formats/conversation.qmd` and `src/axolotl/utils/schemas/datasets.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.export.exchanges import Survey
from clusterucb_core.export.options import ExportFormat
from clusterucb_core.export.sample_files import sample_file

DATASET_INFO = "dataset_info.json"
_JSON, _PARQUET = (".json", ".jsonl"), (".parquet",)
# LLaMA-Factory tells the kind of a file by its suffix.
_SUFFIXES: dict[ExportFormat, tuple[str, ...]] = {
    "jsonl": _JSON,
    "alpaca": _JSON,
    "sharegpt": _JSON,
    "parquet": _PARQUET,
    "datasets": _PARQUET,
}
_MESSAGE_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_OWN_KEYS = ("file_name", "formatting", "columns", "tags")


@dataclass(frozen=True)
class Described:
    """An export to describe: where it lies, its format, and what its conversations hold."""

    out: Path
    shape: ExportFormat
    holds: Survey

    @property
    def name(self) -> str:
        """The name that trainers call it by."""
        return self.out.stem


def dataset_info(export: Described, old: str | None) -> str:
    """Return `dataset_info.json` with the entry of an export, and every other entry as it was.

    Args:
        export: the export; the entry has the name of its file without suffix.
        old: the file that is there, None where there is none.

    Raises:
        InvalidConfig: LLaMA-Factory could not read the file by its suffix, the old file is no JSON object, or
            its entry of that name is for another file.
    """
    entry = _entry(export)
    known = {} if old is None else _parsed(old)
    before = known.get(export.name, {})
    if before and before.get("file_name") != entry["file_name"]:
        raise InvalidConfig(
            f"{DATASET_INFO} has an entry {export.name!r} for {before.get('file_name')!r}, not for "
            f"{entry['file_name']!r}; name the export otherwise"
        )
    others = {key: value for key, value in before.items() if key not in _OWN_KEYS}
    return json.dumps(known | {export.name: entry | others}, indent=2, ensure_ascii=False) + "\n"


def names_export(text: str, export: Described) -> bool:
    """Tell whether a `dataset_info.json` has the entry of an export.

    Raises:
        InvalidConfig: it is no JSON object.
    """
    return _parsed(text).get(export.name, {}).get("file_name") == _file_name(export)


def axolotl_file(out: Path) -> Path:
    """Return the file for Axolotl beside an export."""
    return out.with_name(f"{out.stem}.axolotl.yaml")


def axolotl_text(export: Described) -> str:
    """Return the part of an Axolotl configuration that reads an export.

    Raises:
        InvalidConfig: Axolotl's reader would leave out a part of conversations.
    """
    lines = [
        "# Put this into your Axolotl configuration; the path counts from where axolotl is started.",
        "# Axolotl shuffles: for the order of the file set shuffle_merged_datasets: false and",
        "# curriculum_sampling: true. It reads no column but those named here, so no weights.",
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump({"datasets": [_axolotl_entry(export)]}, sort_keys=False)


def _entry(export: Described) -> dict[str, Any]:
    name = _file_name(export)
    if Path(name).suffix not in _SUFFIXES[export.shape]:
        wanted = " or ".join(_SUFFIXES[export.shape])
        raise InvalidConfig(
            f"LLaMA-Factory knows files by their suffix and could not read {name!r}; a file in format "
            f"{export.shape} must end in {wanted}"
        )
    columns = _columns(export)
    if export.shape == "alpaca":
        return {"file_name": name, "formatting": "alpaca", "columns": columns}
    entry: dict[str, Any] = {"file_name": name, "formatting": "sharegpt", "columns": columns}
    return entry if export.shape == "sharegpt" else entry | {"tags": _MESSAGE_TAGS}


def _columns(export: Described) -> dict[str, str]:
    # a column that no row has must not be named: LLaMA-Factory reads it from every row
    system = {"system": "system"} if export.holds.systems else {}
    match export.shape:
        case "alpaca":
            history = {"history": "history"} if export.holds.histories else {}
            return {"prompt": "instruction", "query": "input", "response": "output"} | system | history
        case "sharegpt":
            return {"messages": "conversations"} | system
        case "jsonl" | "parquet" | "datasets":
            return {"messages": "messages"}


def _file_name(export: Described) -> str:
    return sample_file(export.out, export.shape).relative_to(export.out.parent).as_posix()


def _parsed(text: str) -> dict[str, dict[str, Any]]:
    try:
        found: object = json.loads(text)
    except ValueError as error:
        raise InvalidConfig(f"{DATASET_INFO} is no JSON ({error}); correct it or move it away") from error
    if not isinstance(found, dict):
        raise InvalidConfig(f"{DATASET_INFO} is no JSON object; correct it or move it away")
    return cast("dict[str, dict[str, Any]]", found)


def _axolotl_entry(export: Described) -> dict[str, Any]:
    place: dict[str, Any] = {"path": str(export.out)}
    if export.shape == "datasets":
        place["split"] = "train"
    else:
        place["ds_type"] = "parquet" if export.shape == "parquet" else "json"
    if export.shape == "alpaca":
        _refuse_long_alpaca(export)
        return place | {"type": "alpaca"}
    keys = (
        ("conversations", "from", "value") if export.shape == "sharegpt" else ("messages", "role", "content")
    )
    field, role, content = keys
    return place | {
        "type": "chat_template",
        "field_messages": field,
        "message_property_mappings": {"role": role, "content": content},
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }


def _refuse_long_alpaca(export: Described) -> None:
    left_out = export.holds.systems + export.holds.histories
    if left_out:
        raise InvalidConfig(
            "Axolotl's alpaca reader knows neither system messages nor earlier turns, which "
            f"{export.holds.systems} and {export.holds.histories} conversations have; take the format jsonl "
            "or sharegpt"
        )
