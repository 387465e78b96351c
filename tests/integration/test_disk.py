"""A disk that is full, read-only or slow: one sentence, nothing half done, the same result after.

The disk is a tmpfs of its own; what has to be full is filled to the last block.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from clusterucb_core.config import load_config
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.errors import StorageFull
from clusterucb_core.export import export_selection
from clusterucb_core.planning import plan_run
from clusterucb_core.report import write_report
from clusterucb_core.storage_faults import storage_fault
from clusterucb_core.store import list_selections, open_catalog, selection_samples
from clusterucb_core.workspace import Workspace
from tasks.tracking import BUFFER, start_tracking
from tasks.tracking.buffer import flush_records, keep_record
from tasks.tracking.records import RUN_TAG, Record

RECIPE = TinyModelRecipe(
    vocabulary=300, tokenizer_texts=60, hidden=16, layers=1, heads=2, steps=2, batch_samples=4
)
SMALL = ("pool.max_samples=60", "warmup.epochs=1", "finetune.epochs=1", "evaluate.baselines=[]")
# What writes, in the order of a run.
STAGES = (
    "run_ingest", "run_tokens", "run_target", "run_candidates", "run_shared", "publish_pool", "run_training",
    "run_shard", "run_clustering", "run_draws", "publish_run", "publish_features", "run_evaluation",
    "publish_evaluations", "keep_result",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module")
def undisturbed(plain, config, tmp_path_factory):
    """What a run selects that nothing happened to."""
    finished = plain.run_plain(config, tmp_path_factory.mktemp("undisturbed"), *SMALL)
    return selected(finished.plan.workspace)


@pytest.fixture
def roomy_disk(small_disk):
    """The small disk with room for a whole run."""
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    return small_disk


def selected(workspace):
    """Return the ids of every version in rank order."""
    with open_catalog(workspace.catalog, read_only=True) as con:
        versions = [summary.selection_version for summary in list_selections(con)]
        return {version: selection_samples(con, version)["sample_id"].to_list() for version in versions}


def fill(disk: Path) -> Path:
    """Fill a disk to its last block, and return the file that does it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while (free := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize) > 0:
            os.posix_fallocate(file.fileno(), file.tell(), free)
            file.seek(0, os.SEEK_END)
    return ballast


def on_full_disk(function, disk, reached):
    """Return a function whose disk is full from its first call on."""

    def filled(*arguments, **named):
        reached.append(fill(disk))
        return function(*arguments, **named)

    return filled


def drafts(home: Path) -> list[Path]:
    return [path for path in home.rglob(".*") if path.name.endswith(".tmp")]


def test_a_disk_that_is_full_at_any_stage_leaves_nothing_half_done_and_the_run_goes_on_after(
    plain, config, roomy_disk, undisturbed, monkeypatch
):
    home = roomy_disk / "home"
    workspace = Workspace(home=str(home))
    for name in STAGES:
        reached = []
        with monkeypatch.context() as patched:
            patched.setattr(plain, name, on_full_disk(getattr(plain, name), roomy_disk, reached))
            with pytest.raises(Exception) as caught:  # noqa: PT011 - any library's
                plain.run_plain(config, home, *SMALL)
        told = storage_fault(caught.value, workspace.places)
        assert isinstance(told, StorageFull), (name, caught.value)
        assert f"the disk of {home}" in str(told), name
        assert "goes on from what was computed" in str(told)
        assert drafts(home) == [], name
        reached[0].unlink()
        if workspace.catalog.exists():
            assert set(selected(workspace)) <= {1}, name
    again = plain.run_plain(config, home, *SMALL)
    assert selected(again.plan.workspace) == undisturbed


def test_features_that_will_not_fit_are_refused_before_the_first_is_computed(
    plain, config, roomy_disk, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000, "total": 2000}))
    with pytest.raises(StorageFull, match=r"^the gradient features of \d+ samples take .* free; make room"):
        plain.run_plain(config, roomy_disk / "home", *SMALL)
    assert list((roomy_disk / "home" / "artifacts").glob("features/*/*")) == []


@pytest.fixture(scope="module")
def done(plain, config, tmp_path_factory):
    """The workspace of a finished run."""
    return plain.run_plain(config, tmp_path_factory.mktemp("done"), *SMALL).plan.workspace


@pytest.mark.parametrize("shape", ["jsonl", "parquet", "alpaca", "sharegpt", "datasets"])
def test_an_export_to_a_full_disk_leaves_nothing_and_is_whole_after(done, small_disk, tmp_path, shape):
    out = small_disk / "out"
    ballast = fill(small_disk)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any library's
        export_selection(done.catalog, 1, out, format=shape)
    told = storage_fault(caught.value, done.places)
    assert isinstance(told, StorageFull)
    assert f"the disk of {small_disk}" in str(told)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == [ballast]
    ballast.unlink()
    export_selection(done.catalog, 1, out, format=shape)
    export_selection(done.catalog, 1, tmp_path / "out", format=shape)
    assert content(out) == content(tmp_path / "out")


def content(place: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of those below a folder."""
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return {str(path.relative_to(place)): path.read_bytes() for path in files if path.is_file()}


def test_a_report_to_a_full_disk_leaves_nothing(done, small_disk):
    ballast = fill(small_disk)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any library's
        write_report(done, 1, small_disk / "report.html")
    assert isinstance(storage_fault(caught.value, done.places), StorageFull)
    assert list(small_disk.iterdir()) == [ballast]


def test_an_mlflow_database_on_a_full_disk_takes_the_record_once_there_is_room(
    config, roomy_disk, tmp_path, monkeypatch
):
    address = f"sqlite:///{roomy_disk / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr("tasks.tracking.runs._link", lambda *_: None)
    client = MlflowClient(address)
    client.search_experiments()
    ballast = fill(roomy_disk)
    plan = plan_run(*load_config(config, SMALL), home=tmp_path / "home")
    assert start_tracking.fn(plan, "flow-0", None).mlflow_run_id is None
    record = Record(tags={RUN_TAG: plan.run_id}, parameters={"seed": "0"}, metrics=(), files={})
    keep_record(record, plan.run_id, plan.workspace.home)
    ballast.unlink()
    flush_records(plan.workspace.home)
    (experiment,) = [found for found in client.search_experiments() if found.name == "clusterucb"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.params) == ("FINISHED", {"seed": "0"})
    assert list((tmp_path / "home" / BUFFER).iterdir()) == []


def test_a_record_that_finds_no_room_leaves_no_half_of_itself(small_disk):
    fill(small_disk)
    record = Record(tags={RUN_TAG: "run"}, parameters={}, metrics=(), files={"page": "x" * 100_000})
    with pytest.raises(OSError, match="No space left"):
        keep_record(record, "run", str(small_disk))
    assert [path for path in small_disk.rglob("*") if path.suffix in {".draft", ".json"}] == []


def test_a_disk_on_which_everything_takes_its_time_gives_the_same_selection(
    plain, config, undisturbed, tmp_path, monkeypatch
):
    rename, waited = Path.replace, []

    def slowly(path, target):
        waited.append(path)
        time.sleep(0.05)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", slowly)
    finished = plain.run_plain(config, tmp_path, *SMALL)
    assert len(waited) > 20
    assert selected(finished.plan.workspace) == undisturbed


def test_the_page_of_a_run_that_a_worker_started_says_what_is_wrong(prefect_server, small_disk, monkeypatch):
    from prefect import flow

    from clusterucb_core.execution import ExecutionSettings
    from flows.calls import plain_faults

    @flow(persist_result=False)
    def write():
        with plain_faults(ExecutionSettings()):
            fill(small_disk)
            (small_disk / "home" / "a").write_bytes(b"1")

    monkeypatch.setenv("CLUSTERUCB_HOME", str(small_disk / "home"))
    (small_disk / "home").mkdir()
    state = write(return_state=True)
    assert state.is_failed()
    assert f"StorageFull: the disk of {small_disk / 'home'} is full" in state.message


@pytest.fixture(scope="module")
def commands(load_module, services, tmp_path_factory):
    environment = services.clean_environment(PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="true")
    folder = tmp_path_factory.mktemp("commands")
    with load_module("integration/forked_commands").forked_commands(folder, environment) as running:
        yield running


def test_the_command_says_so_in_one_line_on_a_full_and_on_a_read_only_disk(
    commands, config, small_disk, undisturbed
):
    home = small_disk / "home"
    overrides = [part for override in SMALL for part in ("--set", override)]
    full = commands.start("run", config, *overrides, CLUSTERUCB_HOME=str(home))
    assert full.wait() == 1, full.err
    assert f"error: the disk of {home}" in full.err
    assert "is full" in full.err
    assert "Traceback" not in full.err

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = commands.start("run", config, *overrides, CLUSTERUCB_HOME=str(home))
    assert again.wait() == 0, again.err
    assert selected(Workspace(home=str(home))) == undisturbed

    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    other = commands.start("run", config, *overrides, "--set", "seed=1", CLUSTERUCB_HOME=str(home))
    assert other.wait() == 2, other.err
    assert other.err.startswith(f"error: {home} is on a disk that can only be read; mount it for writing")
    repeat = commands.start("run", config, *overrides, CLUSTERUCB_HOME=str(home))
    assert repeat.wait() == 0, repeat.err
