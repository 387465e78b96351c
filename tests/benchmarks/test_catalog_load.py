"""The load on a catalog in short form, and a catalog that breaks its laws, which must be found out."""

import catalog_load
import duckdb
import pytest

from clusterucb_core.store import open_catalog

NOTHING = {"busy": 0, "waits": {}, "seconds": {}, "wrong": [], "versions": {}, "pools": [], "evaluations": 0}


@pytest.mark.slow
def test_writers_and_readers_at_once_lose_nothing(tmp_path):
    found = catalog_load.measure(tmp_path / "home" / "catalog.duckdb", 20, writers=4, readers=4)
    assert not any(found["wrong"].values()), found["wrong"]
    assert found["gave_up_waiting"] == 0
    assert found["versions"] >= 8
    assert all(kind["number"] >= 4 for kind in found["openings"].values())
    assert "gave up waiting: 0" in catalog_load.report(found)


@pytest.mark.parametrize(
    ("statement", "law"),
    [
        ("DELETE FROM selection_samples WHERE rank = 100", "versions without all of their samples"),
        ("DELETE FROM pulls WHERE step = 3", "versions without all of their pulls"),
        ("DELETE FROM selections WHERE selection_version = 1", "numbers left out or given twice"),
        ("UPDATE selections SET run_id = 'x' WHERE period = 2", "runs that are there in part"),
        ("DELETE FROM pool_samples WHERE sample_id = 's20'", "pools without all of their samples"),
        ("DELETE FROM evaluations", "evaluations lost or twice"),
        (
            "UPDATE selections SET created_at = '2020-01-01' WHERE selection_version = 2",
            "versions older than the one before",
        ),
    ],
)
def test_a_law_that_is_broken_is_found_out(tmp_path, statement, law):
    path = tmp_path / "catalog.duckdb"
    log = one_of_everything(path, tmp_path)
    assert not any(catalog_load._compared(path, [log]).values())
    with duckdb.connect(path) as con:
        con.execute(statement)
    assert catalog_load._compared(path, [log])[law] > 0


def one_of_everything(path, folder):
    import random
    from dataclasses import asdict

    import catalog_workers as workers

    log = workers.Log()
    drafts = [workers._draft("run", period, random.Random(0)) for period in (1, 2)]
    with open_catalog(path) as con:
        workers._add_pool(con, log, folder, "digest")
        workers._publish(con, log, drafts)
        workers._evaluate(con, log, "run")
    return NOTHING | asdict(log)
