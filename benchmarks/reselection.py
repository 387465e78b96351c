"""What a re-selection after a pool change costs and captures, beside a selection from scratch.

A pool of real samples is selected from by `clusterucb run` (dynamic mode, GSM8K, tiny Llama); then samples
are added, removed and edited, and `clusterucb reselect` follows. Beside it, at the same last checkpoint and
under the whole budget, a selection from scratch draws from the changed pool; full gradients tell the truth.

    python benchmarks/reselection.py --folder FOLDER [--samples 6000 --added 300 --removed 100 --edited 50]

Needs `CLUSTERUCB_DATA` and `CLUSTERUCB_MODELS`.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, hardware, today, versions, write_result

from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.influence import Judgement, judge
from clusterucb_core.pool.ingest import PoolSettings, ingest, limit_samples, read_sample_ids, read_samples
from clusterucb_core.records import Sample
from clusterucb_core.seeds import child_rng
from clusterucb_core.stages.drawing import DrawSpec
from clusterucb_core.stages.draws import run_draws
from clusterucb_core.stages.features import plan_jobs, run_shard
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.stages.scores import open_book, read_target_gradients, total_scores, usable_rows
from clusterucb_core.stages.training import selected_ids
from clusterucb_core.trails import newest_trails
from clusterucb_core.workspace import Workspace

PROJECT = Path(__file__).resolve().parent.parent
# Of a run, what selects: the rest prepares files, trains and evaluates.
SELECTING = ("stages/features-", "stages/cluster_pool", "stages/draw_selection")
EXAMPLE = """
pool: {{sources: [{{path: pool.jsonl}}]}}
target: {{name: gsm8k, validation: {target}, test: {target}}}
model: {{base: {model}, max_length: 512, lora: {{r: 8, alpha: 16, dropout: 0.0}}}}
mode: dynamic
warmup: {{steps: 20, learning_rate: 1.0e-3, batch_size: 16}}
selection: {{budget_fraction: 0.1, top_fraction: 0.05}}
finetune: {{epochs: 2, learning_rate: 1.0e-3, batch_size: 16}}
evaluate: {{baselines: []}}
"""


def measure(folder: Path, *, samples: int, changes: dict[str, int], seed: int) -> dict[str, Any]:
    """Return every figure of one change of a pool.

    Args:
        folder: an empty folder for the pool and the state.
        samples: samples of the pool before the change.
        changes: how many are `added`, `removed` and `edited`.
        seed: of the run, and of what changes.
    """
    rows = real_samples(folder / "real", samples + changes["added"], seed=seed)
    config, home = _configuration(folder), folder / "home"
    _write(folder / "pool.jsonl", rows[:samples])
    first = _command("run", config, home, seed)
    _write(folder / "pool.jsonl", changed_rows(rows, samples, changes))
    second = _command("reselect", config, home, seed)
    workspace = Workspace(home=str(home))
    trail = newest_trails(workspace)[0]
    period = trail.targets[0].chosen.periods[-1]
    scratch_spec = period.spec.model_copy(update={"followed": None, "run_id": "from scratch"})
    scratch = run_draws(scratch_spec, workspace, ExecutionSettings())
    truth = true_scores(period.spec, workspace)
    chosen, anew = selected_ids(period.draws), selected_ids(scratch)
    (target,) = second["targets"]
    figures = {"run": _figures(home, first), "reselect": _figures(home, second)}
    return {
        "change": target["change"],
        "drift": target["fit"]["drift"],
        "clustered_anew": target["fit"]["is_new"],
        **figures,
        "selecting_seconds_ratio": figures["reselect"]["selecting_s"] / figures["run"]["selecting_s"],
        "gradients_ratio": figures["reselect"]["gradients"] / figures["run"]["gradients"],
        "reselected": asdict(_judged(truth, chosen, period.spec)),
        "from_scratch": asdict(_judged(truth, anew, period.spec)),
        "overlap": len(set(chosen) & set(anew)) / len(chosen),
    }


def real_samples(folder: Path, count: int, *, seed: int) -> list[Sample]:
    """Return so many samples of the real pool, in an order of chance."""
    data = Path(os.environ["CLUSTERUCB_DATA"]) / "pool"
    # first, so that its answers stay where flan_cot_gsm8k asks the same questions
    sources = [{"path": str(data / name)} for name in ("gsm8k_train.jsonl.gz", "*.gz")]
    pool = ingest(PoolSettings.model_validate({"sources": sources}), base_folder=folder, artifact_root=folder)
    wanted = limit_samples(read_sample_ids(pool), max_samples=count, seed=seed)
    found = {sample.sample_id: sample for sample in read_samples(pool, wanted)}
    order = child_rng(seed, "reselection benchmark").permutation(len(wanted))
    return [found[wanted[place]] for place in order]


def changed_rows(rows: list[Sample], samples: int, changes: dict[str, int]) -> list[dict[str, Any]]:
    """Return the rows of the changed pool: the first ones are gone, the next edited, the last have joined."""
    removed, edited = changes["removed"], changes["edited"]
    kept = [_row(row) for row in rows[removed:samples]]
    for row in kept[:edited]:
        row["messages"][-1]["content"] += " That is the answer."
    return [*kept, *(_row(row) for row in rows[samples:])]


def true_scores(spec: DrawSpec, workspace: Workspace) -> dict[str, np.ndarray]:
    """Return the scores of every candidate at the checkpoints of a selection, by sample."""
    ids, execution = candidate_ids(spec.candidates), ExecutionSettings()
    for space in spec.spaces:
        for job in plan_jobs(
            space, spec.tokens, ids, workspace=workspace, execution=execution, run_id="truth"
        ):
            run_shard(job, workspace, execution)
    target = read_target_gradients(spec.target, spec.spaces, workspace)
    book = open_book(spec.spaces, spec.weights, target, sample_ids=ids, workspace=workspace)
    rows = usable_rows(book)
    return dict(zip((ids[row] for row in rows), total_scores(book, rows), strict=True))


def _judged(truth: dict[str, np.ndarray], chosen: list[str], spec: DrawSpec) -> Judgement:
    place = {sample: row for row, sample in enumerate(truth)}
    selected = np.array([place[sample] for sample in chosen])
    return judge(np.array(list(truth.values())), selected, aggregate=spec.settings.aggregate)


def _configuration(folder: Path) -> Path:
    target = Path(os.environ["CLUSTERUCB_DATA"]) / "targets" / "gsm8k.jsonl.gz"
    model = Path(os.environ["CLUSTERUCB_MODELS"]) / "tiny-llama"
    path = folder / "config.yaml"
    path.write_text(EXAMPLE.format(target=target, model=model), "utf-8")
    return path


def _row(sample: Sample) -> dict[str, Any]:
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in sample.messages]}


def _write(path: Path, rows: list[Sample] | list[dict[str, Any]]) -> None:
    lines = [json.dumps(_row(row) if isinstance(row, Sample) else row) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _command(name: str, config: Path, home: Path, seed: int) -> dict[str, Any]:
    line = [sys.executable, "-m", "flows", name, str(config), "--set", f"seed={seed}", "--json"]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home), "MLFLOW_TRACKING_URI": _tracking(home)}
    done = subprocess.run(line, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`clusterucb {name}` ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _tracking(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


def _figures(home: Path, result: dict[str, Any]) -> dict[str, float]:
    """Return what one call took: its own gradients, and the seconds of its selecting stages."""
    from mlflow import MlflowClient

    metrics = MlflowClient(_tracking(home)).get_run(result["mlflow_run_id"]).data.metrics
    seconds = [
        value for key, value in metrics.items() if key.startswith(SELECTING) and key.endswith("/seconds")
    ]
    return {
        "gradients": result["work"]["gradient_evaluations"],
        "selecting_s": round(sum(seconds), 1),
        "whole_s": result["seconds"],
    }


def report(result: dict[str, Any]) -> None:
    """Print the figures side by side."""
    change = result["change"]
    print(
        f"{change['n_samples']} samples, {change['n_added']} of them new, {change['n_removed']} gone; "
        f"drift {result['drift']:+.3f}"
    )
    for name in ("run", "reselect"):
        found = result[name]
        print(f"{name:10} {found['gradients']:6} gradients, {found['selecting_s']:7.1f} s selecting")
    print(
        f"ratio      {result['gradients_ratio']:6.3f} of the gradients, "
        f"{result['selecting_seconds_ratio']:.3f} of the seconds"
    )
    for name in ("reselected", "from_scratch"):
        found = result[name]
        print(f"{name:12} captured {found['captured_influence']:.4f}, recall {found['recall']:.4f}")
    print(f"overlap of both selections {result['overlap']:.3f}")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder for pool and state")
    for name, default in (("samples", 6000), ("added", 300), ("removed", 100), ("edited", 50), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=RESULTS / "reselection.json")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    changes = {name: getattr(given, name) for name in ("added", "removed", "edited")}
    result = measure(given.folder, samples=given.samples, changes=changes, seed=given.seed)
    report(result)
    facts = {
        "date": today(), "seed": given.seed, "hardware": hardware(torch.device("cpu")),
        "versions": versions("torch", "clusterucb"),
    }  # fmt: skip
    write_result(given.out, facts | result)


if __name__ == "__main__":
    main()
