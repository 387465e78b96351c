"""Object stores for tests: one in this process's memory, one in a folder."""

import uuid
from dataclasses import replace

import pytest

from clusterucb_core.object_store import access, open_store


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    """An empty store, and no pauses between its attempts."""
    if request.param == "memory":
        return open_store(f"memory://{uuid.uuid4().hex}/prefix")
    return open_store(f"file://{tmp_path}/store/prefix")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(access, "READ_AGAIN_AFTER_S", 0.0)


class Failing:
    """A file system whose calls of one name fail a number of times before they do what they should."""

    def __init__(self, files, name, error, times):
        self.files, self.name, self.error, self.left = files, name, error, times

    def __getattr__(self, name):
        if name != self.name or self.left <= 0:
            return getattr(self.files, name)

        def fail(*_, **__):
            self.left -= 1
            raise self.error

        return fail


@pytest.fixture
def failing(store):
    """Return the store with a call that fails."""

    def make(name, error, times):
        return replace(store, files=Failing(store.files, name, error, times))

    return make
