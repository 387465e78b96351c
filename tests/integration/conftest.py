"""The pipeline in plain Python, as a module."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def plain():
    path = Path(__file__).with_name("plain_run.py")
    spec = importlib.util.spec_from_file_location("plain_run", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
