from pathlib import Path

import pytest
from pydantic import TypeAdapter

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.object_store.addresses import (
    StorageRoot,
    check_address,
    is_address,
    mirror_folder,
    mirrored_address,
    protocol_of,
)


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket",
        "s3://bucket/with/prefix/",
        "gs://bucket/prefix",
        "az://container/prefix",
        "abfs://container@account.dfs.core.windows.net/prefix",
        "file:///shared/folder",
        "memory://anything",
    ],
)
def test_addresses_of_object_stores_can_be_used(address):
    check_address(address)
    assert is_address(address)
    assert protocol_of(address) == address.split(":")[0]


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA:hidden@bucket/prefix",
        "sftp://me@hidden.example/folder",
        "abfs://account:hidden@container",
        "az://container/prefix?sig=hidden",
        "s3://bucket/prefix#hidden",
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(address):
    with pytest.raises(InvalidConfig, match="credentials into the environment") as refused:
        check_address(address)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("address", ["simplecache::s3://bucket", "s4://bucket", "://bucket"])
def test_an_unknown_protocol_is_refused_with_those_that_are_known(address):
    with pytest.raises(InvalidConfig, match="no protocol of an object store; known are s3, gs, az, file and"):
        check_address(address)


@pytest.mark.parametrize("address", ["file://shared/folder", "file://"])
def test_the_address_of_a_folder_is_absolute(address):
    with pytest.raises(InvalidConfig, match=r"is relative; give file:///ABSOLUTE/PATH"):
        check_address(address)


def test_an_address_is_as_long_as_the_name_of_a_folder_can_be():
    with pytest.raises(InvalidConfig, match="too long to name a folder"):
        check_address("s3://bucket/" + "a" * 250)


def test_the_folder_that_mirrors_a_store_says_which_it_is():
    folder = mirror_folder(Path("/state/staging"), "s3://bucket/a prefix/")
    assert folder.parent == Path("/state/staging")
    assert mirrored_address(folder) == "s3://bucket/a prefix"
    assert mirror_folder(Path("/state/staging"), "s3://bucket/a prefix") == folder


@pytest.mark.parametrize(
    "folder", ["/state/artifacts", "/shared", "/a%3A%2F%2Fb/c", "/s3%3a%2f%2fbucket", "/"]
)
def test_a_folder_like_any_other_mirrors_nothing(folder):
    assert mirrored_address(Path(folder)) is None


def test_a_storage_root_is_checked_where_it_is_an_address():
    root = TypeAdapter(StorageRoot)
    assert root.validate_python("shared/artifacts") == "shared/artifacts"
    assert root.validate_python("s3://bucket") == "s3://bucket"
    with pytest.raises(InvalidConfig, match="no protocol"):
        root.validate_python("nothing://bucket")
