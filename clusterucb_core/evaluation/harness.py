"""Runs lm-eval 0.4.13 on a model in memory, with the tasks made from a target or those that lm-eval ships.

Reads the files of the task folder only and writes nothing: rows go to lm-eval in memory, so that no data set
cache grows and no text of a row is taken for a date. Shipped tasks load their own data sets.
"""

import contextlib
import copy
import importlib
import json
import logging
import random
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.evaluation.loss import evaluation_mode
from clusterucb_core.evaluation.metrics import RowScores, report_results, row_scores
from clusterucb_core.evaluation.names import OWN_TASKS, check_shipped
from clusterucb_core.records import EvalResult
from clusterucb_core.seeds import child_seed

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_CPU_BATCH_ROWS = 8
_BOOTSTRAP_RESAMPLES = 1000  # for the few shipped metrics whose standard error has no formula


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What tasks came to: their metrics, the scores of their rows, and for each row what the model said."""

    results: list[EvalResult]
    scores: list[RowScores]
    samples: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Reach:
    """What lm-eval gives a model: `max_length` tokens; `encode` those of a text and of what follows it."""

    max_length: int
    encode: Callable[[str, str], tuple[list[int], list[int]]]


def reach_of(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Reach:
    """Return how many tokens lm-eval gives a model at most, and how it makes them."""
    with _quiet_stdout():
        lm = _language_model(model, tokenizer, batch_size=1)
    return Reach(lm.max_length, lm._encode_pair)


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
    run_code: bool = False,
) -> TaskReport:
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
        run_code: run the code of tasks that ask for it, in the sandbox.

    Returns:
        One result for each metric of each task and group, in the order of the names, with the intervals of
        `metrics.report_results`; the scores of `metrics.row_scores`; and a sample for each row and filter:
        its number and id, what the model gave (texts, or log-likelihoods with whether they are the greedy
        ones), what the filter made of that, and the scores.

    Raises:
        InvalidConfig: a task is unknown, its data set cannot be loaded, or it runs code and must not.
        NoSandbox: code cannot be isolated on this machine.
    """
    if not task_names:
        return TaskReport([], [], [])
    with (
        _quiet_stdout(),
        _global_generators_kept(child_seed(seed, "evaluation.tasks")),
        evaluation_mode(model),
    ):
        lm = _language_model(model, tokenizer, batch_size)
        tasks = load_tasks(task_names, include_path, run_code=run_code)
        report = _evaluate(lm, tasks, limit=limit, seed=seed)
    samples = [_sample(task, sample) for task, of_task in report["samples"].items() for sample in of_task]
    return TaskReport(list(report_results(report, subject)), list(row_scores(report)), samples)


def load_tasks(names: Sequence[str], include_path: Path | None, *, run_code: bool) -> Any:
    """Load tasks with their data, which for shipped ones lm-eval downloads where it is not there.

    Args:
        names: names of tasks; `target` stands for all tasks of `include_path`.
        include_path: folder that `write_task_files` filled, or None.
        run_code: whether tasks that run code may be loaded.

    Raises:
        InvalidConfig: a task is unknown, its data set cannot be loaded, or it runs code and must not.
    """
    from lm_eval.tasks import TaskManager

    own = {} if include_path is None else _own_tasks(include_path)
    expanded = [task for name in names for task in (list(own) if name == OWN_TASKS else [name])]
    wanted = list(dict.fromkeys(expanded))
    shipped = [name for name in wanted if name not in own]
    manager = TaskManager(include_defaults=bool(shipped))
    check_shipped(shipped, list(own), manager)
    specs = [_in_memory(own[name]) if name in own else name for name in wanted]
    if not specs:
        raise InvalidConfig(
            f"evaluate.tasks={list(names)} names no task; the target has no test rows: set target.test"
        )
    with _only_errors_of("lm_eval.api.task"):  # it explains how rows in memory could be given arguments
        loaded = _loaded(manager, specs, shipped)
    _refuse_code(loaded, own, run_code=run_code)
    return loaded


def _evaluate(lm: Any, tasks: Any, *, limit: int | None, seed: int) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate

    # `evaluate`, not `simple_evaluate`: that one also asks pip and git about the machine, on each call.
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=child_seed(seed, "evaluation.examples") % 2**32)
    logger.info("lm-eval: %d tasks", len(tasks["tasks"]))
    report: Any = evaluate(
        lm=lm,
        task_dict=tasks,
        limit=limit,
        bootstrap_iters=_BOOTSTRAP_RESAMPLES,
        confirm_run_unsafe_code=True,
    )  # which of them may run code was settled when they were loaded
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


def _loaded(manager: Any, specs: list[Any], shipped: Sequence[str]) -> Any:
    try:
        return manager.load(specs)
    # what data sets raise where they cannot be had: no connection, no such set, one that needs a script or a
    # package; for tasks of our own, whose rows are in memory, none of it is foreseen
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        if not shipped:
            raise
        raise InvalidConfig(
            f"a task of {', '.join(shipped)} cannot be loaded ({_first_line(error)}); lm-eval takes its data "
            "from the Hugging Face hub: download it there first, or leave the task out of evaluate.tasks"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def _refuse_code(loaded: Any, own: dict[str, Path], *, run_code: bool) -> None:
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) and (name not in own or not run_code):
            raise InvalidConfig(
                f"task {name!r} runs code that the model writes; set evaluate.allow_code_execution=true, and "
                "give its rows as a target file: then the code runs in a sandbox"
            )


def _sample(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": task,
        "row": sample["doc_id"],
        "row_id": sample["doc"].get("row_id") if isinstance(sample["doc"], dict) else None,
        "filter": sample["filter"],
        "responses": sample["resps"],
        "answers": sample["filtered_resps"],
        "scores": {metric: sample[metric] for metric in sample["metrics"]},
    }


def _own_tasks(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.with_suffix(".jsonl").is_file()}


def _in_memory(path: Path) -> dict[str, Any]:
    task = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)  # noqa: S506 - a safe loader
    lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]

    def load_rows(**_: object) -> "dict[str, Dataset]":
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    del task["dataset_path"], task["dataset_kwargs"]
    task["custom_dataset"] = load_rows
    return task


def _imported(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Callable[..., object]:
    module, _, function = str(node.value).rpartition(".")
    return getattr(importlib.import_module(module), function)


class _TaskLoader(yaml.SafeLoader):
    """Reads the functions that our task files name."""

    yaml_constructors = {**yaml.SafeLoader.yaml_constructors, "!function": _imported}  # noqa: RUF012


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
