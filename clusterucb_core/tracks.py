"""What a tracker keeps of a run: parameters, metrics over time, files. Reads artifacts only."""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import yaml

from clusterucb_core.config import RunConfig
from clusterucb_core.frozen import Frozen
from clusterucb_core.stages.drawn import read_pulls, read_scores, read_selected
from clusterucb_core.stages.summary import SubjectSummary, Trajectory
from clusterucb_core.stages.training import loss_history

logger = logging.getLogger(__name__)

MAX_PARAMETER_CHARS = 6000
POINTS_OF_A_CURVE = 200
# The score matrix of a period is kept as a text up to so many values, some 4 MB; the artifact has it always.
MOST_SCORES = 200_000
ESTIMATES = (
    "estimated_captured", "captured_low", "captured_high", "estimated_recall", "recall_low", "recall_high",
    "separation_p",
)  # fmt: skip
SUBJECT_FIGURES = ("captured_influence", "recall", "loss", "gradient_evaluations", *ESTIMATES)


class Metric(Frozen):
    """One value of a metric at a step."""

    key: str
    value: float
    step: int
    timestamp_ms: int


def run_parameters(config: RunConfig) -> dict[str, str]:
    """Return the configuration as flat parameters, `selection.policy` and so on."""
    return {key: str(value)[:MAX_PARAMETER_CHARS] for key, value in _flat(config.model_dump(mode="json"))}


def run_metrics(chosen: Trajectory, subjects: Sequence[SubjectSummary]) -> Iterator[Metric]:
    """Yield rewards and budget over draws, losses over steps, and the final figures of every subject."""
    now = int(time.time() * 1000)
    for period in chosen.periods:
        rewards = read_pulls(period.draws)["reward"].to_numpy()
        name = f"period_{period.spec.period}"
        for step in (
            np.unique(np.linspace(0, len(rewards) - 1, POINTS_OF_A_CURVE).astype(int)) if len(rewards) else []
        ):
            so_far = rewards[: step + 1]
            yield Metric(
                key=f"{name}/reward_mean", value=float(so_far.mean()), step=int(step), timestamp_ms=now
            )
            yield Metric(
                key=f"{name}/reward_best", value=float(so_far.max()), step=int(step), timestamp_ms=now
            )
            yield Metric(key=f"{name}/budget_spent", value=float(step + 1), step=int(step), timestamp_ms=now)
    for training in chosen.trainings:
        for point in loss_history(training):
            yield Metric(key="train/loss", value=point.loss, step=point.step, timestamp_ms=now)
            yield Metric(
                key="train/learning_rate", value=point.learning_rate, step=point.step, timestamp_ms=now
            )
    for subject in subjects:
        prefix = subject.subject.replace(":", "_")
        for key in SUBJECT_FIGURES:
            value = getattr(subject, key)
            if value is not None:
                yield Metric(key=f"{prefix}/{key}", value=float(value), step=0, timestamp_ms=now)


def run_files(config: RunConfig, chosen: Trajectory) -> dict[str, str]:
    """Return the resolved configuration, and the selection and scores of each period, as named texts."""
    files = {"config.yaml": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)}
    for period in chosen.periods:
        files[f"selection-period-{period.spec.period}.csv"] = read_selected(period.draws).write_csv()
        scores = read_scores(period.draws)
        if 0 < scores.height * scores.width <= MOST_SCORES:
            files[f"scores-period-{period.spec.period}.csv"] = scores.write_csv(float_precision=6)
        elif scores.height:
            logger.info(
                "the scores of period %d, %d samples x %d columns, stay in its artifact %s",
                period.spec.period,
                scores.height,
                scores.width,
                period.draws.path,
            )
    return files


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
