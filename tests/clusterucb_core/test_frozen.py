import pytest
from pydantic import ValidationError

from clusterucb_core.frozen import Frozen


class Point(Frozen):
    x: int
    y: int = 0


def test_a_value_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Point(x=1).x = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_a_field_that_is_not_known_is_refused():
    with pytest.raises(ValidationError, match="z"):
        Point.model_validate({"x": 1, "z": 3})


def test_equal_values_are_equal_and_can_be_keys():
    assert Point(x=1) == Point(x=1, y=0)
    assert len({Point(x=1), Point(x=1, y=0), Point(x=2)}) == 2
