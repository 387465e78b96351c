"""A run that is interrupted or ended stops soon, leaves no process, and goes on where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import psutil
import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

ROOT = Path(__file__).parents[2]
POOL = "clusterucb-process"
RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SETTINGS = ("pool.max_samples=1200", "warmup.epochs=1", "finetune.epochs=1", "evaluate.baselines=[]")
# shards that take longer than the wait for the first one
EXECUTION = ("execution.shard_samples=400", "execution.max_batch_tokens=256", "execution.workers=2")
STOPS_WITHIN_S = 10
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


def start(config, home: Path, runner: str) -> "subprocess.Popen[str]":
    settings = (*SETTINGS, *EXECUTION, f"execution.runner={runner}")
    line = [sys.executable, "-m", "flows", "run", str(config), "--json"]
    line += [part for setting in settings for part in ("--set", setting)]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, env=environment, text=True, start_new_session=True, **streams)


def finish(config, home: Path) -> None:
    run = start(config, home, "threads")
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
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        run = start(config, tmp_path, runner)
        wait_for_shards(tmp_path, lambda run=run: run.poll() is None)
        children = descendants(run.pid)
        # Ctrl-C reaches the whole foreground group, the system's signals the one process
        (os.killpg if stop is signal.SIGINT else os.kill)(run.pid, stop)
        if stop is signal.SIGKILL:
            # the server that Prefect starts for a run outlives it, and holds its pipes
            run.wait(STOPS_WITHIN_S)
            servers = [process for process in children if "uvicorn" in " ".join(process.cmdline())]
            assert left_of([process for process in children if process not in servers]) == []
            for server in servers:
                server.kill()
            run.communicate(timeout=STOPS_WITHIN_S)
            continue
        _, errors = run.communicate(timeout=STOPS_WITHIN_S)
        assert run.returncode == 130
        assert errors.splitlines()[-1].startswith("interrupted; what was computed is kept")
        assert left_of(children) == []
    finish(config, tmp_path)
    assert chosen(tmp_path) == undisturbed
