"""A run configuration as a YAML file with comments: what is set, and every other setting at its default.

`# text` tells what a setting is, `#key: value` is a default, which takes effect all the same: to change it,
remove the `#`. Names, defaults, choices and descriptions come from the models of the settings.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from clusterucb_core.complaints import choices_of, model_in
from clusterucb_core.config import RunConfig
from clusterucb_core.execution import ExecutionSettings

WIDTH = 100
INDENT = "  "
HOW_TO_READ = (
    "Paths are relative to this file; $NAME and ${NAME} are environment variables. A setting behind a # "
    "without a space is at its default, which holds as it is; to change it, remove the # and give a value."
)


def commented_config(values: Mapping[str, Any], *, origin: str) -> str:
    """Return the text of a configuration file.

    Args:
        values: what is set, as `load_config` reads it; all of it must be known settings.
        origin: the first line of the file, a sentence about where it comes from.
    """
    lines = [*_prose(origin, ""), *_prose(HOW_TO_READ, "")]
    for name, field in RunConfig.model_fields.items():
        lines += ["", *_setting(name, field, values, indent="")]
    execution = values.get("execution") or {}
    lines += ["", *_about(ExecutionSettings.__doc__ or "", "", ""), "execution:"]
    lines += _settings(ExecutionSettings, execution, indent=INDENT)
    return "\n".join(lines) + "\n"


def _settings(kind: type[BaseModel], values: Mapping[str, Any], *, indent: str) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield from _setting(name, field, values, indent=indent)


def _setting(name: str, field: FieldInfo, values: Mapping[str, Any], *, indent: str) -> Iterator[str]:
    section = model_in(field.annotation)
    text = field.description or (section.__doc__ if section else None) or ""
    yield from _about(text, _choices(field, text), indent)
    value = values.get(name)
    if section is not None and isinstance(value, list):
        yield f"{indent}{name}:"
        yield from _entries(section, cast("list[Mapping[str, Any]]", value), indent=indent + INDENT)
    elif section is not None and (isinstance(value, dict) or isinstance(field.default, BaseModel)):
        yield f"{indent}{name}:"
        yield from _settings(section, cast("dict[str, Any]", value or {}), indent=indent + INDENT)
    elif name in values:
        yield f"{indent}{name}: {_yaml(value)}"
    else:
        yield f"{indent}#{name}: {_yaml(field.default)}"


def _entries(section: type[BaseModel], entries: Sequence[Mapping[str, Any]], *, indent: str) -> Iterator[str]:
    """Yield the entries of a list of settings, the first one with comments."""
    for number, entry in enumerate(entries):
        known = {name: entry[name] for name in section.model_fields if name in entry}
        inner = indent + INDENT
        lines = _settings(section, known, indent=inner) if number == 0 else _plain(known, inner)
        begun = False
        for line in lines:
            is_first = not begun and not line.lstrip().startswith("#")
            yield f"{indent}- {line.removeprefix(inner)}" if is_first else line
            begun = begun or is_first


def _plain(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    return (f"{indent}{name}: {_yaml(value)}" for name, value in values.items())


def _about(text: str, choices: str, indent: str) -> list[str]:
    """Return what a setting is, in its first paragraph, and what it may be."""
    first = text.strip().split("\n\n")[0]
    sentence = first if first.endswith(".") else f"{first}."
    return _prose(f"{sentence} {choices}" if choices else sentence, indent)


def _choices(field: FieldInfo, text: str) -> str:
    """Return the names that a setting may have, where its description leaves some out."""
    names = choices_of(field)
    if all(name in text for name in names):
        return ""
    if get_origin(field.annotation) is tuple:
        return f"Any of {', '.join(names)}."
    return f"A number, or {names[0]}." if len(names) == 1 else f"One of {', '.join(names)}."


def _prose(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width=WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_on_hyphens=False,
    )


def _yaml(value: object) -> str:
    """Return a value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump([plain], default_flow_style=True, width=10**9, allow_unicode=True).strip()[1:-1]
