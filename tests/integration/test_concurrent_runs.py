"""Two runs on one state folder at once, and readers: all end well, and what both need is computed once."""

import json
import os
import subprocess
import sys
import threading
import time

import duckdb
import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.errors import MissingArtifact, StaleArtifact
from clusterucb_core.store import list_selections, open_catalog

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = ("pool.max_samples=200", "warmup.epochs=1", "finetune.epochs=1", "evaluate.baselines=[]")
READERS = 3

pytestmark = pytest.mark.slow


def read_until(done: threading.Event, path, seen: list[int], failed: list[Exception]) -> None:
    """List the selections again and again, as a report or a notebook would."""
    while not done.is_set():
        try:
            with open_catalog(path, read_only=True) as con:
                seen.append(len(list_selections(con)))
        except (MissingArtifact, StaleArtifact):
            pass  # no run has made the catalog yet
        except Exception as error:  # noqa: BLE001 - whatever a reader meets is what this is about
            failed.append(error)
        time.sleep(0.1)


def start(config, home, seed: int) -> "subprocess.Popen[str]":
    settings = (*SMALL, f"seed={seed}")
    overrides = [part for setting in settings for part in ("--set", setting)]
    line = [sys.executable, "-m", "flows", "run", str(config), *overrides, "--json"]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home)}
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_runs_and_three_readers_at_once_all_end_well(tmp_path):
    config, home = write_demo(tmp_path / "demo", recipe=RECIPE).config, tmp_path / "home"
    done, seen, failed = threading.Event(), list[int](), list[Exception]()
    readers = [
        threading.Thread(target=read_until, args=(done, home / "catalog.duckdb", seen, failed))
        for _ in range(READERS)
    ]
    runs = [start(config, home, seed) for seed in (0, 1)]
    for reader in readers:
        reader.start()
    try:
        ended = [run.communicate(timeout=500) for run in runs]
    finally:
        done.set()
        for reader in readers:
            reader.join(60)
    assert [run.returncode for run in runs] == [0, 0], [errors[-2000:] for _, errors in ended]
    # whoever came second has waited, and said for whom
    assert sum("another run works in this state folder" in errors for _, errors in ended) == 1
    assert failed == []
    assert max(seen) == 2
    versions = sorted(json.loads(out)["selection_version"] for out, _ in ended)
    assert versions == [1, 2]
    with duckdb.connect(home / "catalog.duckdb", read_only=True) as con:
        query = (
            "SELECT selection_version, n_selected, count(*), max(rank) FROM selections "
            "JOIN selection_samples USING (selection_version) GROUP BY ALL ORDER BY ALL"
        )
        whole = con.execute(query).fetchall()
    assert [(version, rows, top) for version, n, rows, top in whole if rows == n] == [
        (1, 10, 10),
        (2, 10, 10),
    ]


def test_one_run_started_twice_at_once_computes_once(tmp_path):
    config, home = write_demo(tmp_path / "demo", recipe=RECIPE).config, tmp_path / "home"
    runs = [start(config, home, seed=0) for _ in range(2)]
    ended = [run.communicate(timeout=500) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], [errors[-2000:] for _, errors in ended]
    results = [json.loads(out) for out, _ in ended]
    idle, busy = sorted((result["work"] for result in results), key=lambda work: work["gradient_evaluations"])
    assert idle == {"gradient_evaluations": 0, "trainings": 0}
    assert busy["gradient_evaluations"] > 0
    assert busy["trainings"] > 0
    assert [result["versions"] for result in results] == [[1], [1]]
    with duckdb.connect(home / "catalog.duckdb", read_only=True) as con:
        assert con.execute("SELECT count(*) FROM selections").fetchone() == (1,)
