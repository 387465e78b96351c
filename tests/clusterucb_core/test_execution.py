import pytest
from pydantic import ValidationError

from clusterucb_core.execution import ExecutionSettings


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


@pytest.mark.parametrize("address", ["s3://bucket/artifacts", "gs://bucket", "file:///shared"])
def test_a_storage_root_is_a_folder_and_no_address(address):
    with pytest.raises(ValidationError, match=r"storage_root.*\n.*artifacts lie in folders only"):
        ExecutionSettings(storage_root=address)
    assert ExecutionSettings(storage_root="/mnt/bucket").storage_root == "/mnt/bucket"
