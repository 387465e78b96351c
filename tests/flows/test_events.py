"""The event of a new pool version: emitted by the call that wrote it, and by no other."""

import pytest

from clusterucb_core.store import PoolVersion
from flows.events import announce_pool

VERSION = PoolVersion(
    pool_version=3, parent_version=2, n_samples=10, n_added=4, n_removed=1, n_quarantined=2, digest="d",
    created=True,
)  # fmt: skip


@pytest.fixture
def emitted(monkeypatch):
    """Collect events instead of sending them."""
    found = []
    monkeypatch.setattr("flows.events.emit_event", lambda **event: found.append(event))
    return found


def test_a_new_pool_version_is_announced_with_its_counts(emitted):
    announce_pool(VERSION)
    (event,) = emitted
    assert event["event"] == "clusterucb.pool.updated"
    assert event["resource"]["prefect.resource.id"] == "clusterucb.pool"
    assert event["payload"] == {
        "pool_version": 3, "parent_version": 2, "n_samples": 10, "n_added": 4, "n_removed": 1,
        "n_quarantined": 2, "digest": "d",
    }  # fmt: skip


def test_a_pool_that_was_there_is_not_announced(emitted):
    announce_pool(VERSION.model_copy(update={"created": False}))
    assert emitted == []
