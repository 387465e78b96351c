"""Flows replay a computed shard while its folder is there, and compute that one alone where it is not."""

import shutil
import tempfile
from pathlib import Path

import pytest
from prefect import flow, unmapped
from prefect.task_runners import ThreadPoolTaskRunner

from clusterucb_core.artifacts import artifact_folder
from clusterucb_core.config import load_config
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.object_store import open_store, put_artifact
from clusterucb_core.planning import plan_run
from clusterucb_core.stages.features import plan_jobs, read_features, run_shard
from clusterucb_core.stages.forward import states_space
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.stages.training import checkpoint_refs
from clusterucb_core.workspace import Workspace, stage_key
from tasks.featurize import featurize_on_node, featurize_shard

RECIPE = TinyModelRecipe(
    vocabulary=300, tokenizer_texts=60, hidden=16, layers=1, heads=2, steps=2, batch_samples=4
)
SMALL = ("pool.max_samples=60", "warmup.epochs=1", "execution.shard_samples=20")


@pytest.fixture(scope="module")
def prepared(load_module, tmp_path_factory):
    """A planned run up to its warmup checkpoint: plan, feature space, pool tokens, pool samples."""
    plain = load_module("integration/plain_run")
    config = write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config
    plan = plan_run(*load_config(config, SMALL), home=tmp_path_factory.mktemp("home"))
    (inputs,) = plain.prepare(plan)
    checkpoint = checkpoint_refs(plain.warmup(plan, inputs, later_steps=None))[0]
    return plan, plain.space_of(plan, checkpoint), inputs.tokens, candidate_ids(inputs.candidates)


def jobs_left(prepared):
    plan, space, tokens, ids = prepared
    keywords = {"workspace": plan.workspace, "execution": plan.execution, "run_id": plan.run_id}
    return plan_jobs(space, tokens, ids, **keywords)


@flow(persist_result=False, validate_parameters=False, task_runner=ThreadPoolTaskRunner(max_workers=2))
def featurize(plan, jobs):
    """Map the shard task over the jobs; return the name of each task run's state and the path it gave."""
    futures = featurize_shard.map(jobs, unmapped(plan.workspace), unmapped(plan.execution))
    paths = [future.result().path for future in futures]
    return [future.state.name for future in futures], paths


def traces(folders):
    """Return inode and modification time of every file: what a file written anew cannot keep."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns) for folder in folders for path in folder.iterdir()
    }


def test_a_second_flow_replays_every_shard_and_a_deleted_one_alone_is_computed_again(
    prefect_server, prepared
):
    plan, space, _, ids = prepared
    jobs = jobs_left(prepared)
    stage = f"features/{stage_key(space)}"
    folders = [artifact_folder(plan.workspace.artifacts, stage, job.fingerprint) for job in jobs]
    names, paths = featurize(plan, jobs)
    assert names == ["Completed"] * 3
    assert paths == [str(folder) for folder in folders]
    written, features = traces(folders), read_features(space, ids, plan.workspace)
    assert jobs_left(prepared) == []

    assert featurize(plan, jobs) == (["Cached"] * 3, paths)
    assert traces(folders) == written

    shutil.rmtree(folders[1])
    assert jobs_left(prepared) == [jobs[1]]
    assert featurize(plan, jobs) == (["Cached", "Completed", "Cached"], paths)
    others = [folders[0], folders[2]]
    assert traces(others) == {path: written[path] for path in traces(others)}
    again = traces(folders[1:2])
    assert again.keys() <= written.keys()
    assert all(again[path][1] > written[path][1] for path in again)
    assert (read_features(space, ids, plan.workspace) == features).all()

    rebuilt = traces(folders)
    assert featurize(plan, jobs) == (["Cached"] * 3, paths)
    assert traces(folders) == rebuilt


def test_a_node_with_a_folder_of_its_own_computes_the_same_bytes_and_keeps_no_shard(
    prepared, tmp_path, monkeypatch
):
    plan, space, tokens, ids = prepared
    local = Workspace(home=str(tmp_path / "local"))
    mirrored = Workspace(home=str(tmp_path / "home"), storage_root=f"memory://{tmp_path.name}")
    store = open_store(mirrored.storage_root)
    for ref in (tokens, space.checkpoint.training):
        put_artifact(store, f"{ref.stage}/{ref.fingerprint}", Path(ref.path))
    keywords = {"workspace": mirrored, "execution": plan.execution, "run_id": plan.run_id}
    jobs = plan_jobs(space, tokens, ids, states=states_space(space.model, space.checkpoint), **keywords)
    for job in jobs:
        run_shard(job, local, plan.execution)
    # from here on the folders of this machine are out of reach, but for the model
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
        for path in (Path(tokens.path), Path(space.checkpoint.training.path)):
            path.rename(path.with_name("out of reach"))
        node = mirrored.model_copy(update={"on_node": True})
        refs = [featurize_on_node.fn(job, node, plan.execution) for job in jobs]
        for path in (Path(tokens.path), Path(space.checkpoint.training.path)):
            path.with_name("out of reach").rename(path)
    assert not any(Path(ref.path).exists() for ref in refs)
    held = {path.parent.name for path in (tmp_path / "node").glob("clusterucb-*/*/*/*")}
    assert held == {"tokens", "training", "features"}
    for found in (space, states_space(space.model, space.checkpoint)):
        assert (read_features(found, ids, mirrored) == read_features(found, ids, local)).all()
