"""Shard tasks on Ray: the same bytes as on threads, after a killed worker too; nothing of Ray stays."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import psutil
import pytest

from clusterucb_core.artifacts import MANIFEST
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
# small batches: a shard takes a moment that a test can catch
SMALL = (
    "pool.max_samples=150",
    "warmup.epochs=1",
    "finetune.epochs=1",
    "evaluate.baselines=[]",
    "execution.shard_samples=15",
    "execution.max_batch_tokens=64",
)
RAY = ("execution.workers=2", "execution.device=cpu")
TIMEOUT_S = 600
LOOK_EVERY_S = 1
ATTEMPTS = 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes and files in /proc"),
]


@dataclass
class Run:
    """A run of the command line in a state folder of its own, and the processes that were seen below it."""

    home: Path
    process: psutil.Popen
    seen: set[psutil.Process] = field(default_factory=set)

    @property
    def shards(self) -> dict[str, bytes]:
        return {
            "/".join(path.parts[-3:-1]): path.read_bytes()
            for path in (self.home / "artifacts" / "features").glob("*/[0-9a-f]*/features.npy")
        }

    @property
    def manifests(self) -> dict[str, int]:
        """The finished shards, and when each was finished."""
        found = (self.home / "artifacts" / "features").glob(f"*/[0-9a-f]*/{MANIFEST}")
        return {"/".join(path.parts[-3:-1]): path.stat().st_mtime_ns for path in found}

    @property
    def drafts(self) -> list[Path]:
        return list((self.home / "artifacts" / "features").glob("*/.*.tmp"))

    def look(self) -> set[psutil.Process]:
        """Return the processes below the command line, and remember them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen |= set(self.process.children(recursive=True))
        return {process for process in self.seen if process.is_running()}

    def finish(self) -> dict:
        """Wait for the result; remember what runs below on the way."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, (self.home / "run.err").read_text()[-3000:]
            self.look()
            time.sleep(0.5)
        assert self.process.returncode == 0, (self.home / "run.err").read_text()[-3000:]
        return json.loads((self.home / "run.out").read_text())

    def left_running(self) -> list[str]:
        """Return what outlived the command line by ten seconds."""
        _, alive = psutil.wait_procs(list(self.seen), timeout=10)
        return [process.name() for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    def selection(self) -> dict[str, list]:
        with duckdb.connect(str(self.home / "catalog.duckdb"), read_only=True) as con:
            tables = ("selection_samples", "pulls", "clusters", "feature_rows")
            return {name: con.sql(f"SELECT * FROM {name} ORDER BY ALL").fetchall() for name in tables}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module")
def environment():
    """What Ray needs to keep its files and its token out of the user's; its sockets want a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    private = {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    yield {**os.environ, "OMP_NUM_THREADS": "1", **private}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def started(config, environment, tmp_path_factory):
    """Start runs; those that a failed test left are ended by their pid, and Ray ends with them."""
    runs = []

    def start(*more):
        home = tmp_path_factory.mktemp("home")
        overrides = [part for override in (*SMALL, *more) for part in ("--set", override)]
        line = [sys.executable, "-m", "flows", "run", str(config), *overrides, "--json"]
        with (home / "run.out").open("w") as out, (home / "run.err").open("w") as err:
            process = psutil.Popen(
                line, env={**environment, "CLUSTERUCB_HOME": str(home)}, stdout=out, stderr=err
            )
        runs.append(Run(home, process))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.wait(60)


@pytest.fixture(scope="module")
def on_threads(started):
    run = started("execution.runner=threads")
    run.finish()
    return run


def kill_a_worker_in_mid_shard(run):
    """Kill the first worker that is caught with an open draft; return its drafts and what was finished.

    Returns None where the run ended first: on a busy machine this process may sleep through every draft.
    """
    deadline = time.monotonic() + TIMEOUT_S
    looked, workers = 0.0, []
    while run.process.poll() is None:
        assert time.monotonic() < deadline, (run.home / "run.err").read_text()[-3000:]
        if time.monotonic() - looked > LOOK_EVERY_S:  # to list processes takes longer than a shard
            workers = [process for process in run.look() if is_worker(process)]
            looked = time.monotonic()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                if not drafts_held(worker, run):
                    continue
                worker.suspend()
                if (finished := run.manifests) and (drafts := drafts_held(worker, run)):
                    worker.kill()
                    return drafts, finished
                worker.resume()
        time.sleep(0.001)
    return None


def is_worker(process):
    """Return whether a process is one of Ray's that run tasks: its title is that of its task, or IDLE."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name().startswith(("ray::IDLE", "ray::featurize"))
    return False


def drafts_held(worker, run):
    """Return the drafts of shards whose features a process has mapped."""
    maps = Path(f"/proc/{worker.pid}/maps").read_text()
    return [draft for draft in run.drafts if str(draft) in maps]


def test_a_cluster_of_the_run_gives_the_bytes_of_threads_and_ends_with_it(on_threads, started):
    run = started("execution.runner=ray", *RAY)
    run.finish()
    assert len(run.shards) > 10
    assert run.shards == on_threads.shards
    assert run.selection() == on_threads.selection()
    assert run.left_running() == []


def test_a_worker_killed_in_mid_shard_costs_that_shard_and_nothing_else(on_threads, started):
    for _ in range(ATTEMPTS):
        run = started("execution.runner=ray", *RAY)
        if caught := kill_a_worker_in_mid_shard(run):
            break
    else:
        pytest.fail(f"{ATTEMPTS} runs ended before a worker was caught in mid-shard")
    (draft,), finished = caught
    killed = f"{draft.parent.name}/{draft.name.split('.')[1]}"
    assert killed not in finished
    run.finish()
    assert run.drafts == []  # the worker that took the shard up removed what the killed one had left
    # what was finished is as it was, and the killed shard is there
    assert finished.items() <= run.manifests.items()
    assert killed in run.manifests
    assert run.shards == on_threads.shards
    assert run.selection() == on_threads.selection()
    assert run.left_running() == []


@pytest.fixture
def cluster(environment):
    """A Ray cluster on this machine, stopped by its own pid; its address."""
    folder = Path(environment["RAY_TMPDIR"])
    ports = ["--port=26379", "--ray-client-server-port=26001", "--node-ip-address=127.0.0.1"]
    size = ["--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={folder / 'head'}"]
    line = ["--head", "--block", "--include-dashboard=false", "--disable-usage-stats", *ports, *size]
    log = folder / "head.log"
    with log.open("w") as out:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *line],
            cwd=folder,  # not that of the run: relative paths would lead elsewhere
            env=environment,
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield "127.0.0.1:26379"
    finally:
        head.terminate()
        head.wait(60)


def test_a_cluster_that_runs_already_gives_the_bytes_of_threads_and_stays(on_threads, started, cluster):
    run = started("execution.runner=ray", f"execution.ray_address={cluster}", "execution.device=cpu")
    run.finish()
    assert run.shards == on_threads.shards
    assert run.selection() == on_threads.selection()
    assert run.left_running() == []
