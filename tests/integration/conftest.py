"""The pipeline in plain Python, and servers as processes, as modules."""

import pytest


@pytest.fixture(scope="session")
def plain(load_module):
    return load_module("integration/plain_run")


@pytest.fixture(scope="session")
def services(load_module):
    return load_module("integration/services")
