import pytest
from pydantic import ValidationError

from clusterucb_core.execution import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    ExecutionSettings,
    batch_tokens,
)


@pytest.mark.parametrize(
    ("setting", "device", "tokens"),
    [
        ("auto", "cpu", CPU_BATCH_TOKENS),
        ("auto", "cuda", GPU_BATCH_TOKENS),
        ("auto", "cuda:1", GPU_BATCH_TOKENS),
        (512, "cpu", 512),
        (512, "cuda", 512),
    ],
)
def test_the_tokens_of_a_batch_follow_the_device_unless_they_are_given(setting, device, tokens):
    assert batch_tokens(ExecutionSettings(max_batch_tokens=setting), device) == tokens


@pytest.mark.parametrize(
    "change",
    [
        {"shard_samples": 0},
        {"workers": "many"},
        {"workers": 0},
        {"gpus_per_task": -0.5},
        {"max_batch_tokens": 0},
        {"when_tracking_is_down": "ignore"},
        {"nodes": 2},
    ],
)
def test_a_setting_that_cannot_work_is_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        ExecutionSettings(**change)
