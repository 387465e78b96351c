"""Re-selection on a changed pool, from the command line: only what is new is computed, and it is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SETTINGS = (
    "mode=dynamic", "warmup.steps=3", "finetune.epochs=2", "evaluate.baselines=[]",
    "selection={policy: linucb, budget_fraction: 0.2, audit_fraction: 0.04, top_fraction: 0.05}",
)  # fmt: skip
CHANGED = "dates.jsonl"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The demo with 400 rows of its pool in one file, the others gone."""
    folder = tmp_path_factory.mktemp("demo")
    path = write_demo(folder, recipe=RECIPE).config
    rows = [
        {"messages": json.loads(messages)}
        for (messages,) in pool_rows(path, folder / "first")
        .execute("SELECT messages FROM samples ORDER BY sample_id LIMIT 420")
        .fetchall()
    ]
    (folder / "rest.json").write_text(json.dumps(rows[400:]))
    write_rows(folder / CHANGED, rows[:400])
    return path


@pytest.fixture(scope="module")
def first(config, home):
    return command("run", config, home)


@pytest.fixture(scope="module")
def second(first, config, home):
    """The re-selection after 20 rows joined, 10 left and 5 were edited."""
    rows = read_rows(config.parent / CHANGED)
    for row in rows[100:105]:
        row["messages"][-1]["content"] += " Edited."
    joined = json.loads((config.parent / "rest.json").read_text())
    write_rows(config.parent / CHANGED, [*rows[:50], *rows[60:], *joined])
    return command("reselect", config, home)


def pool_rows(config: Path, home: Path) -> duckdb.DuckDBPyConnection:
    line = [sys.executable, "-m", "flows", "ingest", str(config)]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home)}
    subprocess.run(line, env=environment, capture_output=True, timeout=300, check=True)
    return duckdb.connect(home / "catalog.duckdb", read_only=True)


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(name: str, config: Path, home: Path, *more: str) -> dict:
    sources = f"pool.sources=[{{path: {config.parent / CHANGED}}}]"
    overrides = [part for setting in (*SETTINGS, sources) for part in ("--set", setting)]
    line = [sys.executable, "-m", "flows", name, str(config), *overrides, *more, "--json"]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def asked(home: Path, query: str) -> list[tuple]:
    with duckdb.connect(home / "catalog.duckdb", read_only=True) as con:
        return con.execute(query).fetchall()


def test_only_new_samples_and_fresh_draws_are_computed(first, second, home):
    (target,) = second["targets"]
    change = target["change"]
    assert (change["n_added"], change["n_removed"]) == (25, 15)
    assert first["versions"] == [1, 2]
    assert target["versions"] == [3, 4]
    # the first checkpoint: the new samples; the second: at least 64 fresh draws
    assert second["work"] == {"gradient_evaluations": 25 + 64, "trainings": 0}
    paid = asked(home, "SELECT gradient_evaluations FROM selections ORDER BY selection_version")
    assert [count for (count,) in paid[2:]] == [25, 64]
    kinds = asked(home, "SELECT kind, count(*) FROM pulls WHERE selection_version = 4 GROUP BY kind")
    known = asked(
        home,
        "SELECT count(*) FROM pulls JOIN pool_samples USING (sample_id) "
        "WHERE selection_version = 2 AND pool_version = 2",
    )[0][0]
    # the audit has the same part of a fresh budget as of a whole one
    assert dict(kinds) == {"known": known, "draw": 64 - 12, "audit": 12}


def test_the_difference_is_told_by_source_and_cluster(second, home):
    (target,) = second["targets"]
    total = target["difference"]["total"]
    counts = asked(home, "SELECT change, count(*) FROM selection_diff(2, 4) GROUP BY change")
    expected = {"added": 0, "removed": 0, "kept": 0} | dict(counts)
    assert {name: total[name] for name in expected} == expected
    for part in ("by_source", "by_cluster"):
        lines = target["difference"][part]
        assert sum(line["kept"] for line in lines) == total["kept"]
    assert target["fit"]["is_new"] is False


def test_samples_that_left_are_in_no_later_version(second, home):
    gone = (
        "SELECT sample_id FROM pool_samples WHERE pool_version = 1 "
        "EXCEPT SELECT sample_id FROM pool_samples WHERE pool_version = 2"
    )
    for table in ("pulls", "selection_samples"):
        query = f"SELECT count(*) FROM {table} WHERE selection_version > 2 AND sample_id IN ({gone})"
        assert asked(home, query) == [(0,)]


def test_an_unchanged_pool_makes_no_version_and_no_work(second, config, home):
    again = command("reselect", config, home)
    assert again["changed"] is False
    assert again["targets"][0]["selection_version"] == second["targets"][0]["selection_version"]
    assert asked(home, "SELECT max(selection_version) FROM selections") == [(4,)]


def test_a_re_selection_can_train_and_evaluate_and_be_followed_itself(second, config, home):
    write_rows(config.parent / CHANGED, read_rows(config.parent / CHANGED)[:-10])
    third = command("reselect", config, home, "--train")
    assert third["followed_run_id"] == second["run_id"]
    assert third["work"]["trainings"] == 2
    measured = asked(home, "SELECT metric, subject FROM evaluations WHERE selection_version = 6")
    assert ("loss", "selection") in measured


def test_a_new_warmup_runs_the_pipeline_again_and_tells_the_difference(second, config, home):
    rows = read_rows(config.parent / CHANGED)
    rows[0]["messages"][-1]["content"] += " Again."
    write_rows(config.parent / CHANGED, rows)
    anew = command("reselect", config, home, "--new-warmup")
    assert anew["new_warmup"] is True
    assert anew["work"]["trainings"] >= 1
    assert anew["targets"][0]["difference"]["b"] == anew["targets"][0]["selection_version"]
