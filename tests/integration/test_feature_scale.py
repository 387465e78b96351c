"""Host memory while a hundred thousand samples are featurized: it must not grow with the pool."""

import json
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.stages.features import ShardJob, load_source, open_store, plan_jobs
from clusterucb_core.workspace import Workspace

pytestmark = pytest.mark.slow

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SAMPLES, SHARD = 100_000, 2_000


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def featurize(jobs: list[ShardJob], workspace: Workspace) -> list[int]:
    """Compute shard after shard in this process, and return the resident memory after each."""
    from clusterucb_core.lm.tokens import open_tokens
    from clusterucb_core.stages.features import Shard, compute_shard

    source = load_source(jobs[0].space, open_tokens(jobs[0].tokens), "cpu")
    memory = []
    for job in jobs:
        shard = Shard(job.fingerprint, job.sample_ids, job.batches)
        compute_shard(source, shard, workspace, run_id="run")
        memory.append(resident_bytes())
    return memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_stays_flat_over_a_hundred_thousand_samples(plain, tmp_path):
    config = write_demo(tmp_path, recipe=RECIPE).config
    rows = tmp_path / "many.jsonl"
    with rows.open("w") as file:
        for i in range(SAMPLES):
            row = {"instruction": f"Double {i}", "input": "", "output": str(2 * i)}
            file.write(json.dumps(row) + "\n")
    sources = json.dumps([{"path": str(rows), "format": "alpaca"}])
    overrides = (f"pool.sources={sources}", "warmup.epochs=1", "warmup.fraction=0.001")
    plan = plain.plan_run(*plain.load_config(config, overrides), home=tmp_path / "home")
    (inputs,) = plain.prepare(plan)
    checkpoint = plain.checkpoint_refs(plain.warmup(plan, inputs, later_steps=None))[0]
    space, ids = plain.space_of(plan, checkpoint), plain.candidate_ids(inputs.candidates)
    assert len(ids) == SAMPLES
    execution = ExecutionSettings(device="cpu", shard_samples=SHARD)
    jobs = plan_jobs(space, inputs.tokens, ids, workspace=plan.workspace, execution=execution, run_id="run")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        memory = process.submit(featurize, jobs, plan.workspace).result()
    assert open_store(space, plan.workspace).missing(ids) == []
    first = next(i for i in range(len(jobs)) if sum(len(job.sample_ids) for job in jobs[: i + 1]) >= 10_000)
    assert max(memory[first:]) <= 1.1 * memory[first], [size >> 20 for size in memory]
