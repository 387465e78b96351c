"""What pydantic refuses, at any depth and in unions, as one sentence a place."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clusterucb_core.complaints import choices_of, complaints, model_in


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: Literal["red", "green"] = "red"
    size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    perhaps: Inner | None = None
    colours: tuple[Literal["red", "green"], ...] = ()
    needed: int


def said(**tree):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"needed": 1} | tree)
    return complaints(Outer, caught.value)


@pytest.mark.parametrize(
    ("tree", "wanted"),
    [
        ({"iner": {}}, "unknown key iner; did you mean inner? known: inner, several"),
        ({"inner": {"color": "red"}}, "unknown key inner.color; did you mean colour? known: colour, size"),
        (
            {"several": [{}, {"sise": 1}]},
            "unknown key several.1.sise; did you mean size? known: colour, size",
        ),
        ({"perhaps": {"sise": 1}}, "unknown key perhaps.sise; did you mean size? known: colour, size"),
        (
            {"inner": {"colour": "gren"}},
            "inner.colour: Input should be 'red' or 'green' (value seen: \"gren\"); did you mean green?",
        ),
        ({"colours": ["red", "rad"]}, "did you mean red?"),
        ({"inner": {"colour": "blue"}}, "inner.colour: Input should be 'red' or 'green' (value seen:"),
        ({"needed": "x" * 100}, f'(value seen: "{"x" * 79}...)'),
    ],
)
def test_a_complaint_names_place_value_and_near_match(tree, wanted):
    (sentence,) = said(**tree)
    assert wanted in sentence


def test_what_the_members_of_a_union_say_is_one_sentence():
    (sentence,) = said(inner={"size": "atuo"})
    assert sentence.startswith("inner.size: Input should be a valid integer")
    assert ", or Input should be 'auto' (value seen: \"atuo\"); did you mean auto?" in sentence
    assert "constrained" not in sentence
    assert "literal" not in sentence


def test_every_place_has_its_sentence():
    assert [sentence.split(":")[0] for sentence in said(inner={"size": 0, "colour": 3})] == [
        "inner.colour",
        "inner.size",
    ]


def test_a_missing_key_is_named():
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({})
    assert complaints(Outer, caught.value) == ["needed is missing"]


def test_models_and_choices_are_found_in_what_holds_them():
    fields = Outer.model_fields
    assert [model_in(fields[name].annotation) for name in ("inner", "several", "perhaps")] == [Inner] * 3
    assert model_in(fields["needed"].annotation) is None
    assert choices_of(fields["colours"]) == ["red", "green"]
    assert choices_of(Inner.model_fields["size"]) == ["auto"]
    assert choices_of(fields["needed"]) == []
