"""What may not change a feature: shards, workers, threads, the order of a request; batches only by rounding.

On the demo's rows with the demo's model, through the stage that a run calls.
"""

from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pytest

from clusterucb_core.bandit.policies import UcbBeta
from clusterucb_core.bandit.pulls import pull_arms
from clusterucb_core.clustering import spherical_kmeans
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.features.gradients import iter_gradient_features
from clusterucb_core.features.store import plan_shards
from clusterucb_core.influence import top_k
from clusterucb_core.stages.features import (
    ShardJob,
    load_source,
    plan_jobs,
    projection_of,
    read_features,
    run_shard,
)
from clusterucb_core.workspace import Workspace

RECIPE = TinyModelRecipe(vocabulary=300, hidden=32, layers=2, heads=2, steps=20, batch_samples=8)
SAMPLES = 480


@dataclass(frozen=True)
class Prepared:
    """A pool ready to be featurized: the space of its first checkpoint, its tokens and its ids."""

    space: object
    tokens: object
    sample_ids: list[str]
    workspace: Workspace


@pytest.fixture(scope="module")
def prepared(plain, tmp_path_factory):
    config = write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config
    overrides = [f"pool.max_samples={SAMPLES}", "warmup.epochs=1", "features.projection=roll"]
    settings = plain.load_config(config, [*overrides, "features.projection_dim=512"])
    plan = plain.plan_run(*settings, home=tmp_path_factory.mktemp("home"))
    (inputs,) = plain.prepare(plan)
    checkpoint = plain.checkpoint_refs(plain.warmup(plan, inputs, later_steps=None))[0]
    space = plain.space_of(plan, checkpoint)
    return Prepared(space, inputs.tokens, plain.candidate_ids(inputs.candidates), plan.workspace)


@pytest.fixture(scope="module")
def featurize(prepared, tmp_path_factory):
    """Featurize the pool in a state folder of its own, and return rows in the order of its ids."""

    def compute(*, shards: int = 1, workers: int = 1, order: str = "sorted", threads: int | None = None):
        ids = list(prepared.sample_ids)
        if order == "shuffled":
            np.random.default_rng(5).shuffle(ids)
        workspace = Workspace(home=str(tmp_path_factory.mktemp("state")))
        execution = ExecutionSettings(
            device="cpu", shard_samples=-(-len(ids) // shards), max_batch_tokens=512
        )
        jobs = plan_jobs(
            prepared.space, prepared.tokens, ids, workspace=workspace, execution=execution, run_id="r"
        )
        assert len(jobs) >= shards
        if workers == 1:
            with computing_threads(threads):
                for job in jobs:
                    run_shard(job, workspace, execution)
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(run_in_one_thread, jobs, [workspace] * len(jobs), [execution] * len(jobs)))
        return read_features(prepared.space, prepared.sample_ids, workspace)

    return compute


@contextmanager
def computing_threads(count: int | None):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    yield
    torch.set_num_threads(before)


def run_in_one_thread(job: ShardJob, workspace: Workspace, execution: ExecutionSettings) -> None:
    import torch

    torch.set_num_threads(1)
    run_shard(job, workspace, execution)


@pytest.fixture(scope="module")
def expected(featurize):
    return featurize()


@pytest.mark.parametrize(
    "way",
    [
        {"shards": 3},
        {"shards": 16},
        {"order": "shuffled"},
        {"threads": 1},
        {"threads": 2},
        pytest.param(
            {"shards": 16, "workers": 4, "order": "shuffled"},
            id="sixteen by four processes",
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_shards_workers_and_order_change_no_byte(featurize, expected, way):
    found = featurize(**way)
    assert found.tobytes() == expected.tobytes()
    assert len(np.unique(expected.round(6), axis=0)) > 0.9 * len(expected), "features tell samples apart"


@pytest.fixture(scope="module")
def by_budget(prepared):
    """The same features at 512 and at 8,192 padded tokens a batch, before they are stored."""
    from clusterucb_core.lm.tokens import open_tokens

    table = open_tokens(prepared.tokens)
    source = load_source(prepared.space, table, "cpu")
    samples = table.take(prepared.sample_ids)
    lengths = np.array([len(sample.input_ids) for sample in samples])
    found = {}
    for budget in (512, 8192):
        (shard,) = plan_shards(
            "space", prepared.sample_ids, lengths, shard_samples=10**6, max_batch_tokens=budget
        )
        place = {sample_id: row for row, sample_id in enumerate(prepared.sample_ids)}
        batches = [np.array([place[shard.sample_ids[i]] for i in batch]) for batch in shard.batches]
        rows = np.zeros((len(samples), 512), dtype=np.float32)
        stream = iter_gradient_features(
            source.model, samples, batches, moments=source.moments, projection=projection_of(prepared.space)
        )
        for batch in stream:
            rows[batch.indices] = batch.features
        found[budget] = (rows, len(batches))
    return found


def test_another_batch_budget_moves_features_by_rounding_only(by_budget):
    (small, few), (large, many) = by_budget[8192], by_budget[512]
    assert few < many / 4, "the budgets lead to other batches"
    largest = np.abs(small).max(axis=1, keepdims=True)
    assert (np.abs(small - large) / largest).max() < 1e-5
    steps = np.spacing(np.maximum(np.abs(small), 1e-4).astype(np.float16)).astype(np.float32)
    stored = [rows.astype(np.float16).astype(np.float32) for rows in (small, large)]
    assert (np.abs(stored[0] - stored[1]) <= steps).all()


def test_another_batch_budget_keeps_the_selection(by_budget):
    selections = []
    for rows, _ in by_budget.values():
        stored = rows.astype(np.float16).astype(np.float32)
        rng = np.random.default_rng(0)
        labels, _centres = spherical_kmeans(stored, 12, rng=np.random.default_rng(1))
        arms = [rng.permutation(np.flatnonzero(labels == arm)) for arm in range(12)]
        influence = stored @ stored[:20].mean(axis=0)
        log = pull_arms(
            [arm for arm in arms if len(arm)],
            lambda drawn, influence=influence: influence[drawn][:, None],
            policy=UcbBeta(),
            budget_samples=len(stored) // 2,
            cold_start_fraction=0.05,
            rng=rng,
        )
        drawn = np.asarray(log.samples)
        selections.append({*drawn[top_k(influence[drawn], len(stored) // 10)].tolist()})
    assert len(selections[0] & selections[1]) >= 0.99 * len(selections[0])
