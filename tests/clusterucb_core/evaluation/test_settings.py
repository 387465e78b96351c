import pytest
from pydantic import ValidationError

from clusterucb_core.evaluation import EvaluateSettings


def test_the_defaults_are_those_of_the_contract():
    assert EvaluateSettings().model_dump() == {
        "tasks": (),
        "baselines": ("zero_shot", "random"),
        "random_seeds": 3,
        "batch_size": "auto",
        "limit": None,
        "allow_code_execution": False,
    }


@pytest.mark.parametrize(
    "value", [{"baselines": ["best"]}, {"batch_size": 0}, {"batch_size": "big"}, {"limit": 0}, {"task": []}]
)
def test_what_cannot_work_is_refused(value):
    with pytest.raises(ValidationError):
        EvaluateSettings.model_validate(value)
