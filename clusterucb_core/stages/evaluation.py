"""Test loss and lm-eval tasks of the base model or of a trained adapter.

Reads the artifacts `target`, `tokens` and `training`; writes the artifact `evaluation`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from clusterucb_core.artifacts import artifact_file, fingerprint, new_artifact
from clusterucb_core.evaluation import (
    OWN_PERPLEXITY,
    OWN_TASKS,
    EvaluateSettings,
    Rendering,
    RowScores,
    TaskReport,
    evaluate_tasks,
    loss_result,
    perplexity_name,
    reach_of,
    task_names,
    test_losses,
    write_perplexity_task,
    write_task_files,
)
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.lm.chat import exchange_text, prompt_text
from clusterucb_core.lm.devices import leased_device
from clusterucb_core.lm.loading import load_base, load_tokenizer
from clusterucb_core.lm.lora import load_adapter
from clusterucb_core.lm.token_budget import batch_tokens
from clusterucb_core.lm.tokens import TokenTable, open_tokens
from clusterucb_core.records import ArtifactRef, EvalResult, FloatArray, Target
from clusterucb_core.stages.intake import read_target
from clusterucb_core.stages.models import CheckpointRef, ModelRef, checkpoint_folder, open_chat
from clusterucb_core.workspace import StageSpec, Workspace, resumable, stage_key, written

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class EvaluationSpec(StageSpec):
    """One evaluation: of a checkpoint, or of the base model where there is none."""

    stage: str = "evaluation"
    version: int = 2
    model: ModelRef
    checkpoint: CheckpointRef | None
    target: ArtifactRef
    test_tokens: ArtifactRef
    tasks: tuple[str, ...]
    limit: int | None
    run_code: bool = False
    seed: int


def evaluation_spec(
    settings: EvaluateSettings,
    model: ModelRef,
    *,
    checkpoint: CheckpointRef | None,
    target: ArtifactRef,
    test_tokens: ArtifactRef,
    seed: int,
) -> EvaluationSpec:
    """Return the spec of one evaluation."""
    return EvaluationSpec(
        model=model,
        checkpoint=checkpoint,
        target=target,
        test_tokens=test_tokens,
        tasks=settings.tasks,
        limit=settings.limit,
        run_code=settings.allow_code_execution,
        seed=seed,
    )


@resumable
def run_evaluation(
    spec: EvaluationSpec, workspace: Workspace, execution: ExecutionSettings, settings: EvaluateSettings
) -> ArtifactRef:
    """Evaluate, and keep the results and the loss of every test row."""
    with leased_device(execution.device) as device:
        tokens = batch_tokens(
            execution.max_batch_tokens,
            spec.model.settings,
            n_parameters=spec.model.n_parameters,
            device=device,
        )
        return _evaluated(spec, workspace, settings, device=device, tokens=tokens)


def _evaluated(
    spec: EvaluationSpec, workspace: Workspace, settings: EvaluateSettings, *, device: str, tokens: int
) -> ArtifactRef:
    target = read_target(spec.target)
    model = _load(spec, device)
    losses = _losses(spec, model, target, tokens)
    results = [loss_result("", target.name, losses)] if len(losses) else []
    with new_artifact(workspace.artifacts, spec.stage, stage_key(spec), {"n": len(losses)}) as folder:
        report = TaskReport([], [], [])
        if spec.tasks:
            report = _task_report(spec, settings, model, folder=folder / "tasks")
        np.save(folder / "losses.npy", losses)
        _score_table(report.scores).write_parquet(folder / "scores.parquet")
        lines = "".join(f"{json.dumps(sample, default=_plain)}\n" for sample in report.samples)
        (folder / "samples.jsonl").write_text(lines, encoding="utf-8")
        (folder / "results.json").write_text(
            json.dumps([asdict(result) for result in [*results, *report.results]]), encoding="utf-8"
        )
    return written(spec, workspace)


def read_results(ref: ArtifactRef, subject: str) -> list[EvalResult]:
    """Return the results of an evaluation, named as those of a subject."""
    content = json.loads(artifact_file(ref, "results.json").read_text(encoding="utf-8"))
    return [replace(EvalResult(**item), subject=subject) for item in content]


def read_losses(ref: ArtifactRef) -> FloatArray:
    """Return the mean loss [n] of every test row that has an unmasked token."""
    return np.load(artifact_file(ref, "losses.npy"), allow_pickle=False)


def read_scores(ref: ArtifactRef) -> list[RowScores]:
    """Return the scores of the rows of every task, for the metrics that are means over rows."""
    table = pl.read_parquet(artifact_file(ref, "scores.parquet"))
    return [
        RowScores(
            task=part["task"][0],
            metric=part["metric"][0],
            rows=part["row"].to_numpy(),
            values=part["value"].to_numpy(),
            higher_is_better=part["higher_is_better"][0],
        )
        for part in table.partition_by("task", "metric", maintain_order=True)
    ]


def read_samples_of(ref: ArtifactRef) -> list[dict[str, Any]]:
    """Return what the model gave for every row of every task, as `evaluate_tasks` tells it."""
    lines = artifact_file(ref, "samples.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def measured_digest(target: ArtifactRef, test_tokens: ArtifactRef, limit: int | None) -> str:
    """Return a digest of the tokens that a test loss is the mean over: equal ones can be compared."""
    table = open_tokens(test_tokens)
    rows = table.take(_measured_ids(read_target(target), table, limit))
    return fingerprint([[row.input_ids.tolist(), row.labels.tolist()] for row in rows])


def _load(spec: EvaluationSpec, device: str) -> "PreTrainedModel":
    if spec.checkpoint is None:
        return load_base(spec.model.settings, device)
    return load_adapter(spec.model.settings, checkpoint_folder(spec.checkpoint), device)  # pyright: ignore[reportReturnType]


def _losses(spec: EvaluationSpec, model: "PreTrainedModel", target: Target, tokens: int) -> FloatArray:
    table = open_tokens(spec.test_tokens)
    ids = _measured_ids(target, table, spec.limit)
    if not ids:
        return np.zeros(0)
    return test_losses(model, table.take(ids), max_batch_tokens=tokens)


def _measured_ids(target: Target, table: TokenTable, limit: int | None) -> list[str]:
    usable = set(table.sample_ids)
    return [row.row_id for row in target.test if row.row_id in usable][:limit]


def _task_report(
    spec: EvaluationSpec, settings: EvaluateSettings, model: "PreTrainedModel", *, folder: Path
) -> TaskReport:
    folder.mkdir()
    tokenizer = load_tokenizer(spec.model.settings)
    return evaluate_tasks(
        model,
        tokenizer,
        _written_tasks(spec, _rendering(spec, model, tokenizer), folder),
        include_path=folder,
        batch_size=settings.batch_size,
        limit=spec.limit,
        subject="",
        seed=spec.seed,
        run_code=spec.run_code,
    )


def _rendering(
    spec: EvaluationSpec, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> Rendering:
    chat, reach = open_chat(spec.model), reach_of(model, tokenizer)
    return Rendering(
        prompt=lambda messages: prompt_text(chat, messages),
        exchange=lambda messages: exchange_text(chat, messages),
        encode=reach.encode,
        max_length=reach.max_length,
    )


def _written_tasks(spec: EvaluationSpec, rendering: Rendering, folder: Path) -> list[str]:
    """Write the tasks of the target that are asked for, and return the names of all tasks to evaluate."""
    target = read_target(spec.target)
    own, perplexity = task_names(target, run_code=spec.run_code), perplexity_name(target)
    stands_for = {OWN_TASKS: own, OWN_PERPLEXITY: [perplexity]}
    wanted = [name for task in spec.tasks for name in stands_for.get(task, [task])]
    if OWN_TASKS in spec.tasks or set(own) & set(wanted):
        write_task_files(target, folder, rendering=rendering, run_code=spec.run_code)
    if perplexity in wanted:
        write_perplexity_task(target, folder, rendering=rendering)
    return wanted


def _score_table(scores: Sequence[RowScores]) -> pl.DataFrame:
    columns = {
        "task": pl.String,
        "metric": pl.String,
        "higher_is_better": pl.Boolean,
        "row": pl.Int64,
        "value": pl.Float64,
    }
    rows = [
        (item.task, item.metric, item.higher_is_better, row, value)
        for item in scores
        for row, value in zip(item.rows.tolist(), item.values.tolist(), strict=True)
    ]
    return pl.DataFrame(rows, schema=columns, orient="row")


def _plain(value: object) -> object:
    """Return as JSON what a shipped task gives beside plain values: numbers of NumPy, else their text."""
    return value.item() if isinstance(value, np.generic) else str(value)
