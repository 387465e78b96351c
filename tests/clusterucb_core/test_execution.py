import pytest
from pydantic import ValidationError

from clusterucb_core.errors import InvalidConfig
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


@pytest.mark.parametrize("root", ["s3://bucket/artifacts", "gs://bucket", "file:///shared", "/mnt/bucket"])
def test_a_storage_root_is_a_folder_or_the_address_of_a_store(root):
    assert ExecutionSettings(storage_root=root).storage_root == root


@pytest.mark.parametrize("address", ["auto", "ray://host:10001", "10.0.0.1:6379", "ray://[::1]:10001", None])
def test_a_ray_address_names_a_cluster(address):
    assert ExecutionSettings(ray_address=address).ray_address == address


@pytest.mark.parametrize(
    "address", ["ray://me:hidden@host:10001", "ray://host:10001?token=hidden", "h:1#hidden"]
)
def test_a_ray_address_with_a_secret_is_refused_without_repeating_it(address):
    with pytest.raises(InvalidConfig, match="put a token into RAY_AUTH_TOKEN") as refused:
        ExecutionSettings(ray_address=address)
    assert "hidden" not in str(refused.value)


def test_an_address_with_a_secret_is_refused_without_repeating_it():
    with pytest.raises(InvalidConfig, match="credentials into the environment") as refused:
        ExecutionSettings(storage_root="s3://key:hidden@bucket")
    assert "hidden" not in str(refused.value)
