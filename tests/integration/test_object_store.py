"""Runs whose artifacts lie in an object store, on workers that share no folder: the bytes of a local run."""

import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = (
    "pool.max_samples=100",
    "warmup.epochs=1",
    "finetune.epochs=1",
    "evaluate.baselines=[]",
    "execution.device=cpu",
    "execution.shard_samples=25",
)
RAY = ("execution.runner=ray", "execution.workers=2")
TIMEOUT_S = 1200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="starts Ray"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module")
def environment():
    """What keeps the files of Ray out of the user's; its sockets want a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    private = {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    yield {**os.environ, "OMP_NUM_THREADS": "1", **private}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def run(config, environment, tmp_path_factory):
    """Run the command line in a state folder of its own; return the folder and the result."""

    def start(*more, **variables):
        home = tmp_path_factory.mktemp("home")
        overrides = [part for override in (*SMALL, *more) for part in ("--set", override)]
        done = subprocess.run(
            [sys.executable, "-m", "flows", "run", str(config), *overrides, "--json"],
            env={**environment, **variables, "CLUSTERUCB_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return home, json.loads(done.stdout)

    return start


@pytest.fixture(scope="module")
def local(run):
    """The run that all others have to equal: threads, and artifacts in the state folder."""
    home, _ = run()
    return selection(home), files(home / "artifacts")


def selection(home):
    with duckdb.connect(str(home / "catalog.duckdb"), read_only=True) as con:
        tables = ("selection_samples", "pulls", "clusters", "feature_rows")
        return {name: con.sql(f"SELECT * FROM {name} ORDER BY ALL").fetchall() for name in tables}


def files(root):
    """Return what a selection rests on, file by file."""
    kinds = ("features/*/[!.]*/features.npy", "draws/[!.]*/selected.parquet", "clustering/[!.]*/labels.npy")
    found = {path for kind in kinds for path in root.glob(kind)}
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def stored(root):
    """Return the same of an object store in a folder, whose files bear their SHA-256 before the name."""
    kinds = ("features/*/*/*-features.npy", "draws/*/*-selected.parquet", "clustering/*/*-labels.npy")
    found = {path for kind in kinds for path in root.glob(kind)}
    return {
        (path.parent / path.name.partition("-")[2]).relative_to(root).as_posix(): path.read_bytes()
        for path in found
    }


def staged(home, address):
    return Workspace(home=str(home), storage_root=address).artifacts


@contextmanager
def started(line, *, log, until, **options):
    """Run a service until the block ends; wait for what its log says, or for its port."""
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", *line], stdout=out, stderr=out, **options)
    try:
        deadline = time.monotonic() + 120
        while not until():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(60)


def test_nodes_with_folders_of_their_own_give_the_bytes_of_a_local_run(run, local, tmp_path):
    address, node = f"file://{tmp_path}/objects", tmp_path / "node"
    node.mkdir()
    root = f"execution.storage_root={address}"
    home, _ = run(*RAY, root, TMPDIR=str(node))
    tables, kept = local
    assert selection(home) == tables
    assert stored(tmp_path / "objects") == kept
    # this machine has fetched what its own stages read; hidden states that none asked for are not among it
    assert files(staged(home, address)).items() <= kept.items()
    # what shards need came to the node by the store; what it computed went there, and nothing stayed
    (copies,) = node.glob("clusterucb-*/*")
    assert sorted(path.name for path in copies.iterdir()) == ["features", "tokens", "training"]
    assert list(copies.glob("features/*/*")) == []
    assert not list((tmp_path / "objects").rglob("*.tmp"))
    # another machine that starts with nothing finds all of it
    shutil.rmtree(home)
    elsewhere, result = run(root)
    assert selection(elsewhere) == tables
    assert files(staged(elsewhere, address)).items() <= kept.items()
    assert result["work"] == {"gradient_evaluations": 0, "trainings": 0}


@pytest.fixture(scope="module")
def moto(tmp_path_factory):
    """The packages of an S3 server, in a folder of their own."""
    folder = tmp_path_factory.mktemp("moto")
    line = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--target",
        str(folder),
    ]
    lock = ROOT / "requirements-moto.lock"
    done = subprocess.run([*line, "-r", str(lock)], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"the packages of {lock.name} cannot be installed: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="module")
def s3(moto, tmp_path_factory):
    """The environment of clients of an S3 server on loopback, which holds the bucket `pool`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with started(
        ["moto.server", "--host", "127.0.0.1", "--port", str(port)],
        log=log,
        until=lambda: "Running on" in log.read_text(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(moto), os.environ.get("PYTHONPATH", "")])},
    ):
        bucket = urllib.request.Request(f"http://127.0.0.1:{port}/pool", method="PUT")
        with urllib.request.urlopen(bucket, timeout=30) as answer:
            assert answer.status == 200
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "never-shown",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }


def test_a_bucket_of_s3_gives_the_bytes_of_a_local_run_and_no_secret_away(run, local, s3, tmp_path):
    home, _ = run(*RAY, "execution.storage_root=s3://pool/runs", TMPDIR=str(tmp_path), **s3)
    mirror = staged(home, "s3://pool/runs")
    tables, kept = local
    assert selection(home) == tables
    assert files(mirror).items() <= kept.items()
    secret = s3["AWS_SECRET_ACCESS_KEY"].encode()
    assert [path for path in home.rglob("*") if path.is_file() and secret in path.read_bytes()] == []
    with urllib.request.urlopen(f"{s3['AWS_ENDPOINT_URL']}/pool?list-type=2&prefix=runs/features/") as answer:
        listed = answer.read().decode()
    shards = {name: content for name, content in kept.items() if name.startswith("features/")}
    assert len(shards) > 4
    for name, content in shards.items():
        folder, _, file = name.rpartition("/")
        assert f"runs/{folder}/index.json" in listed
        assert f"runs/{folder}/{hashlib.sha256(content).hexdigest()}-{file}" in listed


def test_check_tells_whether_a_bucket_can_be_used_and_leaves_nothing_there(config, environment, s3, tmp_path):
    def check(root):
        return subprocess.run(
            [sys.executable, "-m", "flows", "check", str(config), "--set", f"execution.storage_root={root}"],
            env={**environment, **s3, "CLUSTERUCB_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    usable = check("s3://pool/checked")
    assert usable.returncode == 0, usable.stderr
    assert "s3://pool/checked can be written and read" in usable.stdout
    with urllib.request.urlopen(f"{s3['AWS_ENDPOINT_URL']}/pool?list-type=2&prefix=checked") as answer:
        assert "<KeyCount>0</KeyCount>" in answer.read().decode()
    absent = check("s3://no-such-bucket/prefix")
    assert absent.returncode == 2
    assert "execution.storage_root=s3://no-such-bucket/prefix: a probe could not be written" in absent.stderr
    assert "never-shown" not in absent.stderr
