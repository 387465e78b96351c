"""Runs lm-eval 0.4.13 on a model in memory, with the tasks made from a target or those that lm-eval ships.

Reads the files of the task folder only and writes nothing: rows go to lm-eval in memory, so that no data set
cache grows and no text of a row is taken for a date. Shipped tasks load their own data sets.
"""

import contextlib
import copy
import difflib
import json
import logging
import random
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.evaluation.loss import evaluation_mode
from clusterucb_core.evaluation.metrics import report_results
from clusterucb_core.records import EvalResult
from clusterucb_core.seeds import child_seed

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

OWN_TASKS = "target"
_CPU_BATCH_ROWS = 8
_BOOTSTRAP_RESAMPLES = 1000  # for the few shipped metrics whose standard error has no formula


def evaluate_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    task_names: Sequence[str],
    *,
    include_path: Path | None,
    batch_size: int | str,
    limit: int | None,
    subject: str,
    seed: int,
) -> list[EvalResult]:
    """Evaluate a model on lm-eval tasks, without examples in the prompt unless a shipped task asks for them.

    Args:
        model: a causal language model, with or without adapters; its modules' modes are restored.
        tokenizer: its tokenizer; it is left as it is.
        task_names: names of tasks; `target` stands for all tasks of `include_path`.
        include_path: folder that `write_task_files` filled, or None.
        batch_size: rows in a batch, or `auto`: found by trial on a GPU, 8 elsewhere.
        limit: evaluate the first rows of each task only; None for all.
        subject: what is evaluated; it goes into the results.
        seed: seed of shipped tasks that draw. Global generators are restored afterwards.

    Returns:
        One result for each metric of each task and group, in the order of the names, with the intervals of
        `metrics.report_results`.

    Raises:
        InvalidConfig: a task is unknown, or its data set cannot be loaded.
    """
    if not task_names:
        return []
    with (
        _quiet_stdout(),
        _global_generators_kept(child_seed(seed, "evaluation.tasks")),
        evaluation_mode(model),
    ):
        lm = _language_model(model, tokenizer, batch_size)
        tasks = _load_tasks(task_names, include_path, max_length=lm.max_length)
        report = _evaluate(lm, tasks, limit=limit, seed=seed)
    return list(report_results(report, subject))


def check_task_names(task_names: Sequence[str], own_names: Sequence[str] = ()) -> None:
    """Check names of tasks without a model; with a name that is not the target's own this takes seconds.

    Args:
        task_names: what a run asks for.
        own_names: names of the tasks made from its target.

    Raises:
        InvalidConfig: a task is unknown; the message lists near matches.
    """
    shipped = [name for name in task_names if name != OWN_TASKS and name not in own_names]
    if shipped:
        from lm_eval.tasks import TaskManager

        _refuse_unknown(shipped, own_names, TaskManager())


def _evaluate(lm: Any, tasks: Any, *, limit: int | None, seed: int) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate

    # `evaluate`, not `simple_evaluate`: that one also asks pip and git about the machine, on each call.
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=child_seed(seed, "evaluation.examples") % 2**32)
    logger.info("lm-eval: %d tasks", len(tasks["tasks"]))
    report: Any = evaluate(
        lm=lm, task_dict=tasks, limit=limit, bootstrap_iters=_BOOTSTRAP_RESAMPLES, log_samples=False
    )
    return report


def _language_model(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int | str
) -> Any:
    from lm_eval.models.huggingface import HFLM

    harness_class: Any = HFLM  # its registering decorator hides its parameters from the type checker
    if batch_size == "auto" and model.device.type == "cpu":
        batch_size = _CPU_BATCH_ROWS
    # It warns that a model in memory ignores arguments that are not given here.
    with _only_errors_of("lm_eval.models.huggingface"):
        # A copy, since lm-eval gives the tokenizer a padding token.
        return harness_class(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)


def _load_tasks(names: Sequence[str], include_path: Path | None, *, max_length: int) -> Any:
    from lm_eval.tasks import TaskManager

    own = {} if include_path is None else _own_tasks(include_path)
    expanded: list[str] = []
    for name in names:
        expanded += list(own) if name == OWN_TASKS else [name]
    wanted = list(dict.fromkeys(expanded))
    shipped = [name for name in wanted if name not in own]
    manager = TaskManager(include_defaults=bool(shipped))
    _refuse_unknown(shipped, list(own), manager)
    specs = [_in_memory(own[name], max_length) if name in own else name for name in wanted]
    if not specs:
        raise InvalidConfig(
            f"evaluate.tasks={list(names)} names no task; the target has no test rows: set target.test"
        )
    try:
        with _only_errors_of("lm_eval.api.task"):  # it explains how rows in memory could be given arguments
            return manager.load(specs)
    except OSError as error:
        raise InvalidConfig(
            f"the data set of a task of {shipped} cannot be loaded ({error}); "
            "download it first, or leave the task out of evaluate.tasks"
        ) from error


def _own_tasks(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.with_suffix(".jsonl").is_file()}


def _refuse_unknown(shipped: Sequence[str], own_names: Sequence[str], manager: "TaskManager") -> None:
    known = set(manager.all_tasks)
    for name in shipped:
        if name not in known:
            near = difflib.get_close_matches(name, sorted({OWN_TASKS, *own_names, *known}), n=5)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise InvalidConfig(
                f"evaluate.tasks names the unknown task {name!r}; {hint}"
                f"use {OWN_TASKS!r}, {', '.join([*own_names, 'a task that lm-eval ships'])}, or none"
            )


def _in_memory(path: Path, max_length: int) -> dict[str, Any]:
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]

    def load_rows(**_: object) -> "dict[str, Dataset]":
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    del task["dataset_path"], task["dataset_kwargs"]
    task["custom_dataset"] = load_rows
    generation = task.get("generation_kwargs")
    if generation is not None and generation["max_gen_toks"] > max_length // 2:
        logger.info("%s: generating %d tokens, half of the model's length", path.stem, max_length // 2)
        generation["max_gen_toks"] = max_length // 2
    return task


@contextlib.contextmanager
def _only_errors_of(name: str) -> Generator[None, None, None]:
    named = logging.getLogger(name)
    level = named.level
    named.setLevel(logging.ERROR)
    try:
        yield
    finally:
        named.setLevel(level)


@contextlib.contextmanager
def _quiet_stdout() -> Generator[None, None, None]:
    # lm-eval prints its batch size; standard output is for a command's result alone.
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _global_generators_kept(seed: int) -> Generator[None, None, None]:
    """Seed the global generators, which shipped tasks draw from, and put their states back afterwards."""
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
