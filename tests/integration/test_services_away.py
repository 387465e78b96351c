"""A Prefect server that is down at the start, in the middle, for a moment, or slow: no run hangs."""

import json
import time
from pathlib import Path

import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.store import list_selections, open_catalog, selection_samples

RECIPE = TinyModelRecipe(
    vocabulary=300, tokenizer_texts=60, hidden=16, layers=1, heads=2, steps=2, batch_samples=4
)
SMALL = ("pool.max_samples=60", "warmup.epochs=1", "finetune.epochs=1", "evaluate.baselines=[]")
MANY_SHARDS = ("execution.shard_samples=6", "execution.max_batch_tokens=512")
SHARDS = "artifacts/features/*/*/manifest.json"
# two attempts, two seconds apart, each of three seconds at most
IMPATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "1", "PREFECT_API_REQUEST_TIMEOUT": "3"}
# Of the end of a run whose server is away: a few calls that give up, and the wait for what was to be sent,
# however much that is; five times what it takes on a machine with nothing else to do.
BOUND_S = 200.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module")
def undisturbed(plain, config, tmp_path_factory):
    """The ids that a run selects that nothing happened to."""
    return selected(
        plain.run_plain(config, tmp_path_factory.mktemp("undisturbed"), *SMALL).plan.workspace.home
    )


@pytest.fixture(scope="module")
def commands(load_module, services, tmp_path_factory):
    environment = services.clean_environment(PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="true")
    folder = tmp_path_factory.mktemp("commands")
    with load_module("integration/forked_commands").forked_commands(folder, environment) as running:
        yield running


@pytest.fixture(scope="module")
def server(services, tmp_path_factory):
    with services.prefect_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def proxy(load_module, server):
    port = int(server.api.rsplit(":", 1)[1].split("/")[0])
    with load_module("integration/faulty_proxy").faulty_proxy(port) as running:
        yield running


@pytest.fixture
def start(commands, config, proxy, tmp_path):
    """Start a run that reaches the server through the proxy."""
    overrides = [part for override in (*SMALL, *MANY_SHARDS) for part in ("--set", override)]
    api = f"http://127.0.0.1:{proxy.port}/api"

    def run(**environment):
        named = {"PREFECT_API_URL": api, "CLUSTERUCB_HOME": str(tmp_path / "home")} | environment
        given = {name: value for name, value in named.items() if value}
        return commands.start("run", config, *overrides, "--json", **given)

    return run


def selected(home):
    with open_catalog(Path(home) / "catalog.duckdb", read_only=True) as con:
        (summary,) = list_selections(con)
        return selection_samples(con, summary.selection_version)["sample_id"].to_list()


def finished_shards(home):
    return {path: path.stat().st_mtime_ns for path in home.glob(SHARDS)}


def in_mid_stage(services, home):
    """Wait until the mapped stage has finished shards, and some are left."""
    services.wait_for(lambda: finished_shards(home), seconds=120, what="a shard")


@pytest.mark.parametrize("fault", ["refuse", "hang"])
def test_a_run_that_loses_the_server_ends_soon_with_a_sentence_and_goes_on_when_it_is_back(
    fault, start, proxy, services, tmp_path, undisturbed
):
    home = tmp_path / "home"
    run = start(**IMPATIENT)
    in_mid_stage(services, home)
    proxy.mode, began = fault, time.monotonic()
    assert run.wait() == 1, run.err
    assert time.monotonic() - began < BOUND_S
    assert f"error: the Prefect server at http://127.0.0.1:{proxy.port}/api was away" in run.err
    assert "give the same command again, which goes on from what was computed" in run.err
    assert "Traceback" not in run.err
    kept = finished_shards(home)

    proxy.mode = "pass"
    again = start()
    assert again.wait() == 0, again.err
    assert selected(home) == undisturbed
    after = finished_shards(home)
    assert {path: after[path] for path in kept} == kept
    assert len(after) > len(kept)


def test_a_run_outlives_a_server_that_is_away_for_some_seconds(start, proxy, services, tmp_path, undisturbed):
    run = start()
    in_mid_stage(services, tmp_path / "home")
    proxy.mode = "refuse"
    time.sleep(4)
    proxy.mode = "pass"
    assert run.wait() == 0, run.err
    assert selected(tmp_path / "home") == undisturbed
    assert "Traceback" not in run.err


def test_a_run_on_a_slow_server_takes_longer_and_ends_well(start, proxy, tmp_path, undisturbed):
    proxy.delay_s = 0.2
    run = start()
    assert run.wait() == 0, run.err
    assert selected(tmp_path / "home") == undisturbed


def test_a_run_whose_server_is_down_at_the_start_does_not_start(start, proxy, tmp_path):
    proxy.mode, began = "refuse", time.monotonic()
    run = start()
    assert run.wait() == 2, run.err
    assert time.monotonic() - began < 60
    address = f"http://127.0.0.1:{proxy.port}/api"
    assert run.err.startswith(f"error: the Prefect server at {address} does not answer ([Errno 111]")
    assert not (tmp_path / "home" / "artifacts").exists()


def test_a_run_whose_own_server_has_a_damaged_database_says_which_file_to_move(start, tmp_path, undisturbed):
    home = tmp_path / "home"
    (home / "prefect").mkdir(parents=True)
    database = home / "prefect" / "prefect.db"
    database.write_bytes(b"no database, but longer than the header of one" * 5)
    run = start(PREFECT_API_URL="")
    assert run.wait() == 2, run.err
    assert run.err.startswith(f"error: {database} cannot be used")
    database.unlink()
    again = start(PREFECT_API_URL="")
    assert again.wait() == 0, again.err
    assert json.loads(again.out)["versions"] == [1]
    assert selected(home) == undisturbed
