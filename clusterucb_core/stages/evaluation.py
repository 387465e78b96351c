"""Test loss and lm-eval tasks of the base model or of a trained adapter.

Reads the artifacts `target`, `tokens` and `training`; writes the artifact `evaluation`.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clusterucb_core.artifacts import fingerprint, new_artifact
from clusterucb_core.evaluation import (
    EvaluateSettings,
    evaluate_tasks,
    loss_result,
    test_losses,
    write_task_files,
)
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.lm.chat import prompt_text
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
    from transformers import PreTrainedModel


class EvaluationSpec(StageSpec):
    """One evaluation: of a checkpoint, or of the base model where there is none."""

    stage: str = "evaluation"
    version: int = 1
    model: ModelRef
    checkpoint: CheckpointRef | None
    target: ArtifactRef
    test_tokens: ArtifactRef
    tasks: tuple[str, ...]
    limit: int | None
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
        if spec.tasks:
            results += _task_results(spec, settings, model, folder=folder / "tasks")
        np.save(folder / "losses.npy", losses)
        (folder / "results.json").write_text(
            json.dumps([asdict(result) for result in results]), encoding="utf-8"
        )
    return written(spec, workspace)


def read_results(ref: ArtifactRef, subject: str) -> list[EvalResult]:
    """Return the results of an evaluation, named as those of a subject."""
    content = json.loads((Path(ref.path) / "results.json").read_text(encoding="utf-8"))
    return [replace(EvalResult(**item), subject=subject) for item in content]


def read_losses(ref: ArtifactRef) -> FloatArray:
    """Return the mean loss [n] of every test row that has an unmasked token."""
    return np.load(Path(ref.path) / "losses.npy", allow_pickle=False)


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


def _task_results(
    spec: EvaluationSpec, settings: EvaluateSettings, model: "PreTrainedModel", *, folder: Path
) -> list[EvalResult]:
    chat = open_chat(spec.model)
    folder.mkdir()
    generated = write_task_files(
        read_target(spec.target), folder, render=lambda messages: prompt_text(chat, messages)
    )
    names = [name for task in spec.tasks for name in (generated if task == "target" else [task])]
    return evaluate_tasks(
        model,
        load_tokenizer(spec.model.settings),
        names,
        include_path=folder,
        batch_size=settings.batch_size,
        limit=spec.limit,
        subject="",
        seed=spec.seed,
    )
