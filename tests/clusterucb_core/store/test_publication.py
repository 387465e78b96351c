import os
import signal
import subprocess
import sys

import polars as pl
import pytest

from clusterucb_core.errors import CatalogBusy
from clusterucb_core.records import Exclusion
from clusterucb_core.store import (
    find_selections,
    open_catalog,
    publication,
    publish_selections,
    selection_pulls,
)
from clusterucb_core.store.statements import rows, run

TABLES = ("selections", "selection_samples", "pulls", "exclusions")

# Publishes a copy of version 1 as a new run, and stops inside the transaction when all rows are written.
STOP_BEFORE_COMMIT = """
import sys, time
from pathlib import Path
import polars as pl
from clusterucb_core import store
from clusterucb_core.store import publication

def stop(*args):
    print("written", flush=True)
    time.sleep(60)

publication.insert_exclusions = stop
samples = pl.DataFrame({"rank": [1], "sample_id": ["a1"], "influence": [0.5], "cluster": [0]})
draft = store.SelectionDraft(
    selection_key="new", run_id="killed", period=1, pool_version=1, target="t", mode="static", policy="full",
    budget_samples=1, gradient_evaluations=1, gradient_evaluations_reused=0, target_gradient_evaluations=1,
    selection_flops=1.0, full_selection_flops=1.0, cost={}, config={}, config_digest="", code_version="",
    mlflow_run_id=None, flow_run_id=None, pulls=pl.DataFrame(), samples=samples,
)
with store.open_catalog(Path(sys.argv[1])) as con:
    store.publish_selections(con, [draft])
"""


def counts(con) -> list[int]:
    return [rows(con, f"SELECT count(*) FROM {table}")[0][0] for table in TABLES]


def test_versions_count_up_from_one(con, add_pool, draft):
    add_pool(con, ["a1", "a2", "b1"])
    assert publish_selections(con, [draft(period=1), draft(["b1"], period=2)]) == [1, 2]
    assert publish_selections(con, [draft(run_id="run-2")]) == [3]


def test_the_tables_hold_what_was_published(con, add_pool, draft):
    add_pool(con, ["a1", "a2", "b1"])
    leak = Exclusion("b1", "target", "leak", "equal prompt")
    publish_selections(con, [draft(["a2", "a1"], exclusions=(leak,))])
    query = "SELECT n_selected, cost->>'$.clustering.gradient_evaluations', estimated_recall FROM selections"
    assert rows(con, query) == [(2, "4", None)]
    assert rows(con, "FROM selection_samples ORDER BY rank") == [(1, 1, "a2", 1.0, 0), (1, 2, "a1", 0.5, 0)]
    assert rows(con, "FROM exclusions") == [("selection", "1", "b1", "target", "leak", "equal prompt")]
    assert selection_pulls(con, 1)["arm_left"].to_list() == [2, 1]


def test_a_repeat_returns_the_versions_and_writes_nothing(con, add_pool, draft):
    add_pool(con, ["a1", "a2", "b1"])
    drafts = [draft(period=1), draft(["b1"], period=2)]
    publish_selections(con, drafts)
    before = counts(con)
    assert publish_selections(con, drafts) == [1, 2]
    assert counts(con) == before


def test_known_and_new_keys_can_be_mixed(con, add_pool, draft):
    add_pool(con, ["a1", "a2", "b1"])
    publish_selections(con, [draft(run_id="old", selection_key="k")])
    assert publish_selections(con, [draft(period=1, selection_key="k"), draft(["b1"], period=2)]) == [1, 2]


def test_a_run_is_found_by_its_id_in_order_of_periods(con, add_pool, draft):
    add_pool(con, ["a1", "a2", "b1"])
    publish_selections(con, [draft(run_id="other")])
    publish_selections(con, [draft(period=2), draft(["b1"], period=1)])
    assert find_selections(con, "run-1") == [3, 2]
    assert find_selections(con, "nobody") == []


def test_a_selection_may_have_no_pulls_and_no_influence(con, add_pool, draft):
    add_pool(con, ["a1", "a2"])
    unscored = pl.DataFrame(
        {"rank": [1], "sample_id": ["a1"], "influence": [None], "cluster": [None]},
        schema_overrides={"influence": pl.Float64, "cluster": pl.Int64},
    )
    publish_selections(con, [draft(policy="random", pulls=pl.DataFrame(), samples=unscored)])
    assert rows(con, "FROM selection_samples") == [(1, 1, "a1", None, None)]
    assert rows(con, "SELECT count(*) FROM pulls") == [(0,)]


def test_a_name_that_looks_like_sql_is_stored_as_text(con, add_pool, draft):
    add_pool(con, ["a1", "a2"])
    name = "'); DROP TABLE selections; --"
    publish_selections(con, [draft(target=name, run_id=name)])
    assert find_selections(con, name) == [1]
    assert rows(con, "SELECT target FROM latest_selection") == [(name,)]


def test_a_failure_in_the_middle_leaves_nothing(con, add_pool, draft, monkeypatch):
    add_pool(con, ["a1", "a2", "b1"])
    calls: list[str] = []

    def fail_second(con, scope: str, scope_id: str, exclusions) -> None:
        calls.append(scope_id)
        if scope_id == "2":
            raise OSError("disk full")

    monkeypatch.setattr(publication, "insert_exclusions", fail_second)
    drafts = [draft(period=1), draft(["b1"], period=2)]
    with pytest.raises(OSError, match="disk full"):
        publish_selections(con, drafts)
    assert calls == ["1", "2"]
    assert counts(con) == [0, 0, 0, 0]
    monkeypatch.undo()
    assert publish_selections(con, drafts) == [1, 2]


def test_two_connections_that_publish_at_once_cannot_both_win(
    con, catalog_path, add_pool, draft, monkeypatch
):
    add_pool(con, ["a1", "a2", "b1"])

    def publish_beside(*args: object) -> None:
        monkeypatch.undo()
        with open_catalog(catalog_path) as other:
            assert publish_selections(other, [draft(run_id="other")]) == [1]

    monkeypatch.setattr(publication, "insert_exclusions", publish_beside)
    with pytest.raises(CatalogBusy, match="another thread wrote to the catalog"):
        publish_selections(con, [draft()])
    assert publish_selections(con, [draft()]) == [2]


def test_a_process_killed_in_the_middle_leaves_nothing(catalog_path, add_pool, draft):
    with open_catalog(catalog_path) as con:
        add_pool(con, ["a1", "a2", "b1"])
        publish_selections(con, [draft()])
        before = counts(con)
    command = [sys.executable, "-c", STOP_BEFORE_COMMIT, str(catalog_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    for read_only in (True, False):
        with open_catalog(catalog_path, read_only=read_only) as con:
            assert counts(con) == before
    with open_catalog(catalog_path) as con:
        assert publish_selections(con, [draft(["b1"], run_id="run-2")]) == [2]


def test_numbers_that_a_restoration_lost_are_not_given_again(con, add_pool, draft):
    assert add_pool(con, ["a1", "a2"]).pool_version == 1
    assert publish_selections(con, [draft(["a1", "a2"])]) == [1]
    run(con, "INSERT INTO restorations VALUES (now(), 'backup', NULL, 7, 3)")
    assert publish_selections(con, [draft(["a2", "a1"], run_id="run-2")]) == [8]
    assert publish_selections(con, [draft(["a1", "a2"])]) == [1]
    assert add_pool(con, ["a1"]).pool_version == 4
