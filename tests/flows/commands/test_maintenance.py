"""`maintenance`: what it prints of what was removed, and what it hands to the flow."""

import json
import sys
from types import SimpleNamespace

import pytest

from clusterucb_core.garbage import Removed


@pytest.fixture
def maintained(monkeypatch):
    """Put a function in the place of the flow, and keep what it was asked for."""
    asked = {}

    def replace(artifacts, *, dry_run=False):
        removed = Removed(
            kept_runs=("a", "b"), artifacts=artifacts, bytes=dict.fromkeys(artifacts, 2048), dry_run=dry_run
        )
        backup = None if dry_run else "backups/catalog.duckdb"
        done = SimpleNamespace(
            removed=removed, backup=backup, model_dump=lambda mode: {"removed": removed.model_dump()}
        )

        def run(**options):
            asked.update(options)
            return done

        monkeypatch.setitem(sys.modules, "flows.maintenance", SimpleNamespace(run_maintenance=run))
        return asked

    return replace


def test_what_was_removed_is_told_by_stage(call, maintained):
    asked = maintained({"draws": 3, "features": 1})
    out = call("maintenance", "--keep-runs", 2, "--grace-hours", 1).out
    assert ["draws", "3", "2.0", "KiB"] in [line.split() for line in out.splitlines()]
    assert "2 runs keep their artifacts" in out
    assert "backup of the catalog: backups/catalog.duckdb" in out
    assert (asked["keep_runs"], asked["grace_hours"], asked["dry_run"]) == (2, 1.0, False)


def test_a_dry_run_says_what_would_be_removed_and_makes_no_backup(call, maintained):
    maintained({"draws": 3}, dry_run=True)
    out = call("maintenance", "--dry-run").out
    assert "would be removed" in out
    assert "backup" not in out


def test_where_all_is_needed_nothing_is_removed(call, maintained):
    maintained({})
    assert "nothing to remove" in call("maintenance").out
    assert json.loads(call("maintenance", "--json").out)["removed"]["artifacts"] == {}


def test_to_keep_no_run_is_bad_usage(call):
    assert call("maintenance", "--keep-runs", 0).code == 2
