"""What pydantic refuses, in words: where it is, what is wrong, the value seen, what may have been meant."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from clusterucb_core.near_names import did_you_mean, known_names

MOST_CHARS = 80

Place = tuple[str | int, ...]


def complaints(kind: type[BaseModel], error: ValidationError) -> list[str]:
    """Return one sentence for each place at which a value does not fit its model.

    Args:
        kind: the model that refused it.
        error: its error; what the members of a union each say of one value becomes one sentence.
    """
    by_place: dict[Place, list[dict[str, Any]]] = {}
    for item in error.errors():
        place = tuple(item["loc"])
        shown = place if item["type"] in ("extra_forbidden", "missing") else _known_place(kind, place)
        by_place.setdefault(shown, []).append(dict(item))
    return [_complaint(kind, place, items) for place, items in by_place.items()]


def model_in(annotation: object) -> type[BaseModel] | None:
    """Return the model that an annotation such as `X | None` or `tuple[X, ...]` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_in(part))), None)


def choices_of(field: FieldInfo) -> list[str]:
    """Return the names that a setting, or each entry of it, may have; empty where it is no choice."""
    extra = field.json_schema_extra
    listed = extra.get("enum") if isinstance(extra, dict) else None
    return [str(name) for name in listed] if isinstance(listed, list) else list(_literals(field.annotation))


def _literals(annotation: object) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from (value for value in get_args(annotation) if isinstance(value, str))
        return
    for part in get_args(annotation):
        yield from _literals(part)


def _known_place(kind: type[BaseModel], place: Place) -> Place:
    """Return a place without what pydantic adds to it for the member of a union that it tried."""
    model: type[BaseModel] | None = kind
    for depth, part in enumerate(place):
        if isinstance(part, int):  # a place in a list of the same model
            continue
        if model is None or part not in model.model_fields:
            return place[:depth]
        model = model_in(model.model_fields[part].annotation)
    return place


def _complaint(kind: type[BaseModel], place: Place, items: Sequence[dict[str, Any]]) -> str:
    name = ".".join(str(part) for part in place)
    if items[0]["type"] == "extra_forbidden":
        return f"unknown key {name}; {_near_keys(kind, place)}"
    if items[0]["type"] == "missing":
        return f"{name} is missing"
    message = ", or ".join(dict.fromkeys(str(item["msg"]).removeprefix("Value error, ") for item in items))
    if not place:
        return f"configuration: {message}"
    seen = items[0].get("input")
    field = _field_at(kind, place)
    hint = "" if field is None or "did you mean" in message else did_you_mean(seen, choices_of(field))
    shown = json.dumps(seen, default=str)
    cut = shown if len(shown) <= MOST_CHARS else shown[:MOST_CHARS] + "..."
    return f"{name}: {message} (value seen: {cut})" + (f"; {hint}" if hint else "")


def _near_keys(kind: type[BaseModel], place: Place) -> str:
    model = _model_at(kind, place[:-1])
    if model is None:
        return "remove it"
    return known_names(place[-1], list(model.model_fields))


def _model_at(kind: type[BaseModel], place: Place) -> type[BaseModel] | None:
    model: type[BaseModel] | None = kind
    for part in place:
        if isinstance(part, str) and model is not None:
            model = model_in(model.model_fields[part].annotation) if part in model.model_fields else None
    return model


def _field_at(kind: type[BaseModel], place: Place) -> FieldInfo | None:
    names = [part for part in place if isinstance(part, str)]
    model = _model_at(kind, tuple(names[:-1]))
    return None if model is None or not names else model.model_fields.get(names[-1])
