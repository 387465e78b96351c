"""A run that is interrupted, ended or cancelled stops soon, leaves no process, and goes on where it was."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import duckdb
import psutil
import pytest

from clusterucb_core.config import load_config
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

ROOT = Path(__file__).parents[2]
POOL = "clusterucb-process"
SERVER = "prefect.server.api.server:create_app"
RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SETTINGS = ("pool.max_samples=1200", "warmup.epochs=1", "finetune.epochs=1", "evaluate.baselines=[]")
# shards that take longer than the wait for the first one
EXECUTION = ("execution.shard_samples=400", "execution.max_batch_tokens=256", "execution.workers=2")
STOPS_WITHIN_S = 10
# Prefect's worker hears of a cancellation by an event, or when it asks next
HEARS_WITHIN_S = 10
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
START_S = 240

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed")
    finish(config, home)
    return chosen(home)


@contextmanager
def started(config, home: Path, runner: str) -> "Generator[subprocess.Popen[str]]":
    """Start a run in a session of its own; whatever of that still runs after the block is killed."""
    settings = (*SETTINGS, *EXECUTION, f"execution.runner={runner}")
    line = [sys.executable, "-m", "flows", "run", str(config), "--json"]
    line += [part for setting in settings for part in ("--set", setting)]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, env=environment, text=True, start_new_session=True, **streams) as run:
        try:
            yield run
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def finish(config, home: Path) -> None:
    with started(config, home, "threads") as run:
        _, errors = run.communicate(timeout=400)
    assert run.returncode == 0, errors[-2000:]


def chosen(home: Path) -> list[tuple[object, ...]]:
    """Return what was selected, by version and rank."""
    with duckdb.connect(home / "catalog.duckdb", read_only=True) as con:
        return con.execute("SELECT * FROM selection_samples ORDER BY ALL").fetchall()


def drafts(home: Path) -> set[Path]:
    return set(home.glob("artifacts/features/*/.*.tmp"))


def wait_for_shards(home: Path, is_alive) -> None:
    """Return while the next shards are being computed."""
    before, end = drafts(home), time.monotonic() + START_S
    while not drafts(home) - before:
        assert is_alive(), "it ended before its first shard"
        assert time.monotonic() < end, "no shard was begun"
        time.sleep(0.02)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def left_of(processes: list[psutil.Process]) -> list[str]:
    """Return what still runs of some processes, which get a moment to end."""
    _, alive = psutil.wait_procs(processes, timeout=STOPS_WITHIN_S)
    return [" ".join(process.cmdline()) for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_ctrl_c_and_an_end_by_the_system_stop_a_run_which_then_goes_on(config, undisturbed, tmp_path, runner):
    for stop in STOPS:
        with started(config, tmp_path, runner) as run:
            wait_for_shards(tmp_path, lambda run=run: run.poll() is None)
            children = descendants(run.pid)
            servers = [process for process in children if SERVER in process.cmdline()]
            assert len(servers) == 1, "processes of a pool have the server of the run"
            # Ctrl-C reaches the whole foreground group, the system's signals the one process
            (os.killpg if stop is signal.SIGINT else os.kill)(run.pid, stop)
            _, errors = run.communicate(timeout=STOPS_WITHIN_S)
            assert left_of(children) == []
        if stop is not signal.SIGKILL:
            assert run.returncode == 130
            assert errors.splitlines()[-1].startswith("interrupted; what was computed is kept")
            assert drafts(tmp_path) == set() or runner == "processes"
    finish(config, tmp_path)
    assert chosen(tmp_path) == undisturbed


@pytest.fixture(scope="module")
def server(services, tmp_path_factory):
    """A server with the deployments of the project, and a worker that runs them in `home`."""
    folder = tmp_path_factory.mktemp("server")
    home = tmp_path_factory.mktemp("home")
    with services.prefect_server(folder) as running:
        for words in (
            ["work-pool", "create", POOL, "--type", "process"],
            ["--no-prompt", "deploy", "--name", "pipeline"],
        ):
            done = running.command(*words, folder=ROOT, CLUSTERUCB_CHECKOUT=str(ROOT))
            assert done.returncode == 0, done.stdout + done.stderr
        with services.prefect_worker(running, POOL, folder / "worker", CLUSTERUCB_HOME=str(home)):
            yield SimpleNamespace(running=running, home=home)


def state_of(server, flow_run: str) -> str:
    return server.running.call("GET", f"flow_runs/{flow_run}").raise_for_status().json()["state_type"]


def test_a_flow_run_that_is_cancelled_in_the_ui_stops_and_goes_on(config, undisturbed, server, services):
    deployment = server.running.call("GET", "deployments/name/clusterucb/pipeline").raise_for_status().json()
    settings, execution = load_config(config, [*SETTINGS, *EXECUTION])
    parameters = {"config": settings.model_dump(mode="json"), "execution": execution.model_dump(mode="json")}
    path = f"deployments/{deployment['id']}/create_flow_run"
    run = server.running.call("POST", path, parameters=parameters).raise_for_status().json()["id"]
    wait_for_shards(server.home, lambda: state_of(server, run) not in ("FAILED", "CRASHED"))
    working = flow_processes(server.home)
    assert working
    # what the button of the UI does
    server.running.call("POST", f"flow_runs/{run}/set_state", state={"type": "CANCELLING"}).raise_for_status()
    asked = time.monotonic()
    _, alive = psutil.wait_procs(working, timeout=60)
    seconds = time.monotonic() - asked
    assert alive == []
    services.wait_for(lambda: state_of(server, run) == "CANCELLED", seconds=60, what="state Cancelled")
    assert flow_processes(server.home) == []
    assert drafts(server.home) == set()
    assert seconds < HEARS_WITHIN_S + STOPS_WITHIN_S
    finish(config, server.home)
    assert chosen(server.home) == undisturbed


def flow_processes(home: Path) -> list[psutil.Process]:
    """Return the processes that work in a state folder for a flow run of a deployment."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        try:
            ours = "prefect.engine" in line or "prefect.flow_engine" in line
            if ours and process.environ().get("CLUSTERUCB_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found
