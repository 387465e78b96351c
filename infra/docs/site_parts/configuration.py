"""The reference of the run configuration, from the models that read it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from clusterucb_core.config import RunConfig
from clusterucb_core.execution import ExecutionSettings
from site_parts.markdown import table

Schema = Mapping[str, Any]

HEADERS = ("key", "type", "default", "meaning")
PLAIN_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "at least {} of them",
    "pattern": "matches `{}`",
}


def configuration_reference() -> str:
    """Return one section for each section of a configuration file, with a table of its keys."""
    run, execution = RunConfig.model_json_schema(), ExecutionSettings.model_json_schema()
    plain = {name: field for name, field in run["properties"].items() if _section(field) is None}
    parts = ["## At the top\n", _keys(plain, run, required=run["required"])]
    for name, field in run["properties"].items():
        section = _section(field)
        if section is not None:
            parts.extend(_sections(name, run["$defs"][section], run))
    parts.extend(_sections("execution", execution, execution))
    return "\n".join(parts)


def _sections(place: str, model: Schema, root: Schema) -> Iterator[str]:
    """Yield the heading, the description and the keys of a section, then the sections within it."""
    yield f"\n{'##' if '.' not in place else '###'} `{place}`\n"
    yield f"{model.get('description', '')}\n"
    fields: dict[str, Schema] = model["properties"]
    yield _keys(fields, root, required=model.get("required", ()))
    for name, field in fields.items():
        section = _section(field)
        if section is not None:
            yield from _sections(f"{place}.{name}", root["$defs"][section], root)


def _keys(fields: Mapping[str, Schema], root: Schema, *, required: list[str] | tuple[str, ...]) -> str:
    return table(HEADERS, (_row(name, field, root, given=name in required) for name, field in fields.items()))


def _row(name: str, field: Schema, root: Schema, *, given: bool) -> tuple[str, str, str, str]:
    default = "required" if given else f"`{_yaml(field.get('default'))}`"
    if isinstance(field.get("default"), dict):
        default = "its own defaults"
    meaning = str(field.get("description") or root["$defs"][_section(field)].get("description", ""))
    return f"`{name}`", _type(field), default, meaning


def _section(field: Schema) -> str | None:
    """Return the model that a field holds, perhaps in a list or as an alternative to null."""
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    inside = [*field.get("anyOf", ()), *field.get("allOf", ())]
    if "items" in field:
        inside.append(field["items"])
    return next((found for part in inside if (found := _section(part))), None)


def _type(field: Schema) -> str:
    """Return in words what a field takes, with its bounds."""
    if "$ref" in field:
        return "a section"
    if "enum" in field:
        return "one of " + ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "anyOf" in field:
        return " or ".join(_type(part) for part in field["anyOf"])
    if field.get("type") == "array":
        words = f"list of {_type(field['items'])}" if "items" in field else "list"
    else:
        words = PLAIN_TYPES[field["type"]]
    bounds = [form.format(field[key]) for key, form in BOUNDS.items() if key in field]
    return ", ".join([words, *bounds])


def _yaml(value: object) -> str:
    """Return a default as it would stand in a configuration file."""
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)
