"""Evaluation: test loss with its interval, and lm-eval tasks, made from a target or shipped with lm-eval."""

from clusterucb_core.evaluation.answers import AnswerForm, answer_form
from clusterucb_core.evaluation.harness import TaskReport, evaluate_tasks, load_tasks, reach_of
from clusterucb_core.evaluation.intervals import crossed_mean, loss_result, paired_difference, seed_mean
from clusterucb_core.evaluation.loss import test_losses
from clusterucb_core.evaluation.metrics import RowScores, within_share
from clusterucb_core.evaluation.names import OWN_PERPLEXITY, OWN_TASKS, check_task_names, shipped_names
from clusterucb_core.evaluation.sandbox import check_sandbox
from clusterucb_core.evaluation.settings import EvaluateSettings
from clusterucb_core.evaluation.tasks import (
    Rendering,
    perplexity_name,
    task_names,
    write_perplexity_task,
    write_task_files,
)

__all__ = [
    "OWN_PERPLEXITY",
    "OWN_TASKS",
    "AnswerForm",
    "EvaluateSettings",
    "Rendering",
    "RowScores",
    "TaskReport",
    "answer_form",
    "check_sandbox",
    "check_task_names",
    "crossed_mean",
    "evaluate_tasks",
    "load_tasks",
    "loss_result",
    "paired_difference",
    "perplexity_name",
    "reach_of",
    "seed_mean",
    "shipped_names",
    "task_names",
    "test_losses",
    "within_share",
    "write_perplexity_task",
    "write_task_files",
]
