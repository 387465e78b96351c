"""The example run on the whole real pool: what it read, chose, trained, kept and reported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

DATA, MODELS = os.environ.get("CLUSTERUCB_DATA"), os.environ.get("CLUSTERUCB_MODELS")
EXAMPLE = Path(__file__).parents[2] / "examples" / "gsm8k_tiny_llama.yaml"
MATHS = {"gsm8k_train", "flan_cot_gsm8k"}
NO_ANSWER = {"t0_train_20k": 490, "code_alpaca_2k": 2, "alpaca_5000": 2}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        DATA is None or MODELS is None,
        reason="CLUSTERUCB_DATA and CLUSTERUCB_MODELS name no folders with the real pool and the tiny Llama",
    ),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def result(home):
    line = [sys.executable, "-m", "flows", "run", str(EXAMPLE), "--json"]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture
def catalog(result, home):
    with duckdb.connect(str(home / "catalog.duckdb"), read_only=True) as connection:
        yield connection


def test_the_pool_holds_every_distinct_prompt_and_the_quarantine_every_empty_answer(catalog):
    assert catalog.sql("SELECT n_samples, n_quarantined FROM pools").fetchall() == [(66_843, 494)]
    assert catalog.sql("SELECT count(*) FROM pool_samples").fetchall() == [(66_843,)]
    reasons = catalog.sql("SELECT source, reason, count(*) FROM quarantine GROUP BY ALL").fetchall()
    assert {(source, reason): n for source, reason, n in reasons} == {
        (source, "no_answer"): n for source, n in NO_ANSWER.items()
    }


def test_more_than_half_of_the_selection_is_the_targets_own_material(catalog):
    sources = catalog.sql(
        "SELECT source FROM latest_selection JOIN selection_samples USING (selection_version)"
        " JOIN samples USING (sample_id)"
    ).fetchall()
    assert len(sources) == 300
    assert sum(source in MATHS for (source,) in sources) > 150


def test_the_second_period_keeps_to_its_budget_and_counts_the_clustering_pass(catalog):
    periods = catalog.sql(
        "SELECT period, budget_samples, gradient_evaluations, n_selected FROM selections ORDER BY period"
    ).fetchall()
    excluded = catalog.sql("SELECT count(DISTINCT sample_id) FROM exclusions").fetchall()[0][0]
    assert periods[1][1] == 600
    assert periods[1][2] == 600
    assert periods[0][2] == 6000 - excluded
    assert catalog.sql("SELECT count(*) FROM pulls WHERE selection_version = 2").fetchall() == [(600,)]
    assert [row[3] for row in periods] == [300, 300]


def test_the_certificate_of_the_second_period_covers_its_true_recall(result, catalog):
    (low, high) = catalog.sql(
        "SELECT recall_low, recall_high FROM selections WHERE selection_version = 2"
    ).fetchall()[0]
    (truth,) = (item["recall"] for item in result["subjects"] if item["subject"] == "selection")
    assert low <= truth <= high
    audited = "SELECT count(*) FROM pulls WHERE selection_version = 2 AND kind = 'audit'"
    assert catalog.sql(audited).fetchall() == [(240,)]
    assert catalog.sql("SELECT recall_low FROM selections WHERE selection_version = 1").fetchall() == [
        (None,)
    ]


def test_full_gradient_selection_beats_zero_shot_by_two_percent_and_the_budget_beats_random(result):
    losses = {item["subject"]: item["loss"] for item in result["subjects"]}
    assert losses["full"] < 0.98 * losses["zero_shot"]
    assert losses["selection"] < min(loss for name, loss in losses.items() if name.startswith("random"))


def test_every_table_that_a_run_fills_holds_it(catalog):
    for table in ("pools", "samples", "pool_samples", "quarantine", "feature_rows", "clusters", "pulls"):
        assert catalog.sql(f"SELECT count(*) > 0 FROM {table}").fetchall() == [(True,)], table
    subjects = {row[0] for row in catalog.sql("SELECT DISTINCT subject FROM evaluations").fetchall()}
    assert subjects == {"selection", "zero_shot", "full", "random", "random:0", "random:1", "random:2"}
    assert catalog.sql("SELECT count(*) FROM selection_diff(1, 2)").fetchall()[0][0] > 300


def test_the_selection_is_set_against_its_baselines_row_by_row(result, catalog):
    losses = {item["subject"]: item["loss"] for item in result["subjects"]}
    chance = sum(loss for name, loss in losses.items() if name.startswith("random")) / 3
    found = {
        baseline: (difference, high, n_seeds)
        for baseline, difference, high, n_seeds in catalog.sql(
            "SELECT baseline, difference, high, n_seeds FROM comparisons WHERE metric = 'loss'"
        ).fetchall()
    }
    assert found["random"][0] == pytest.approx(losses["selection"] - chance, rel=1e-4)
    assert found["random"][2] == 3
    assert found["zero_shot"][1] < 0, "training on the selection lowers the loss beyond doubt"


def test_mlflow_and_the_catalog_name_each_other_and_the_flow_run(result, home, catalog):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    run = client.get_run(result["mlflow_run_id"])
    named = catalog.sql("SELECT DISTINCT mlflow_run_id, flow_run_id FROM selections").fetchall()
    assert named == [(run.info.run_id, run.data.tags["prefect.flow_run_id"])]
    assert run.data.params["pool.max_samples"] == "6000"
    rewards = client.get_metric_history(run.info.run_id, "period_2/reward_mean")
    assert len(rewards) > 10
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {
        "config.yaml",
        "selection-period-1.csv",
        "selection-period-2.csv",
    }


@pytest.fixture(scope="module")
def report(result, home, tmp_path_factory):
    """The page that the command line writes about the last selection."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    line = [sys.executable, "-m", "flows", "report", "latest", "--out", str(path), "--json"]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {"path": str(path), "n_bytes": path.stat().st_size, "version": 2}
    return path


def test_every_number_of_the_report_is_the_catalogs(report, catalog, report_page):
    page = report_page.ReportPage(report.read_text(encoding="utf-8"))
    assert report_page.stray_digits(page) == []
    of_map = {"map.n_shown": 2000, "map.n_known": 5999, "map.n_chosen": 300}
    for field, key, exact, shown in page.numbers:
        wanted = of_map.get(field) or report_page.expected(catalog, 2, field, key)
        assert float(exact) == pytest.approx(wanted, rel=1e-9, abs=1e-12), (field, key)
        value, half = report_page.shown_value(shown)
        assert abs(value - wanted) <= half * 1.001, (field, key, shown)
    assert {"evaluations.value", "run_stages.seconds", "map.n_known", "bins.kth_best"} <= {
        field for field, *_ in page.numbers
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_report_opens_offline_and_is_accessible(report, report_page, tmp_path, width, scheme):
    seen = report_page.look_at(report, tmp_path / "shot.png", width=width, scheme=scheme)
    assert (seen.messages, seen.requests) == ([], [])
    assert [found for found in seen.violations if found.startswith(("serious", "critical"))] == []
    assert seen.scroll_width == width
    assert report.stat().st_size < 5_000_000
