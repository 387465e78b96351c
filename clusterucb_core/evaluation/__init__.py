"""Evaluation: test loss with its interval, and lm-eval tasks, made from a target or shipped with lm-eval."""

from clusterucb_core.evaluation.answers import AnswerForm, answer_form
from clusterucb_core.evaluation.harness import check_task_names, evaluate_tasks
from clusterucb_core.evaluation.intervals import loss_result, paired_difference
from clusterucb_core.evaluation.loss import test_losses
from clusterucb_core.evaluation.settings import EvaluateSettings
from clusterucb_core.evaluation.tasks import write_task_files

__all__ = [
    "AnswerForm",
    "EvaluateSettings",
    "answer_form",
    "check_task_names",
    "evaluate_tasks",
    "loss_result",
    "paired_difference",
    "test_losses",
    "write_task_files",
]
