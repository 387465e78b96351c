"""What a tracker keeps of a run: parameters, metrics over time, files. Reads artifacts only."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import yaml

from clusterucb_core.config import RunConfig
from clusterucb_core.frozen import Frozen
from clusterucb_core.records import StageTime
from clusterucb_core.stages.comparison_summary import SettingSummary
from clusterucb_core.stages.drawn import draw_exclusions, read_pulls, read_scores, read_selected
from clusterucb_core.stages.intake import candidate_exclusions
from clusterucb_core.stages.publication import PeriodDraws
from clusterucb_core.stages.summary import TargetOutcome, Work
from clusterucb_core.stages.training import loss_history
from clusterucb_core.store import PoolVersion

logger = logging.getLogger(__name__)

MAX_PARAMETER_CHARS = 6000
POINTS_OF_A_CURVE = 200
# The score matrix of a period is kept as a text up to so many values, some 4 MB; the artifact has it always.
MOST_SCORES = 200_000
ESTIMATES = (
    "estimated_captured", "captured_low", "captured_high", "estimated_recall", "recall_low", "recall_high",
    "separation_p",
)  # fmt: skip
COSTS = ("gradient_evaluations", "selection_flops", "full_selection_flops")
SUBJECT_FIGURES = ("captured_influence", "recall", "loss", *COSTS, *ESTIMATES)
# The fields of a comparison's line that are its parameters; the others that are numbers are its metrics.
SETTING_PARAMETERS = ("target", "policy", "budget_fraction", "audit_fraction", "note")


class Metric(Frozen):
    """One value of a metric at a step."""

    key: str
    value: float
    step: int
    timestamp_ms: int


class RunFigures(Frozen):
    """What one run of the flow took: the pool it read, what it computed itself, its seconds and stages."""

    pool: PoolVersion
    work: Work
    seconds: float
    stages: tuple[StageTime, ...]


def run_parameters(config: RunConfig) -> dict[str, str]:
    """Return the configuration as flat parameters, `selection.policy` and so on."""
    return {key: str(value)[:MAX_PARAMETER_CHARS] for key, value in _flat(config.model_dump(mode="json"))}


def run_tags(outcomes: Sequence[TargetOutcome]) -> dict[str, str]:
    """Return the versions of a run: the last one of the first target, and all of them."""
    versions = [str(version) for outcome in outcomes for version in outcome.versions]
    return {
        "clusterucb.selection_version": str(outcomes[0].versions[-1]),
        "clusterucb.selection_versions": ",".join(versions),
    }


def run_metrics(outcomes: Sequence[TargetOutcome]) -> Iterator[Metric]:
    """Yield rewards and budget over draws, losses over steps, and the final figures of every subject.

    The metrics of several targets begin with the name of their target.
    """
    now = int(time.time() * 1000)
    for outcome in outcomes:
        prefix = f"{outcome.target}/" if len(outcomes) > 1 else ""
        for key, step, value in _points(outcome):
            yield Metric(key=f"{prefix}{key}", value=value, step=step, timestamp_ms=now)


def figure_metrics(figures: RunFigures) -> Iterator[Metric]:
    """Yield what a run of the flow computed itself, and the calls, cache hits and seconds of every stage."""
    now = int(time.time() * 1000)
    values = {
        "run/gradient_evaluations": figures.work.gradient_evaluations,
        "run/trainings": figures.work.trainings,
        "run/seconds": figures.seconds,
        "run/cache_hits": sum(item.cached for item in figures.stages),
    }
    for item in figures.stages:
        name = f"stages/{item.stage.replace(' ', '_')}"
        values |= {f"{name}/calls": item.calls, f"{name}/cached": item.cached}
        values |= {f"{name}/seconds": item.seconds}
    for key, value in values.items():
        yield Metric(key=key, value=float(value), step=0, timestamp_ms=now)


def run_files(config: RunConfig, outcomes: Sequence[TargetOutcome]) -> dict[str, str]:
    """Return the resolved configuration, selections and scores of each target and period as named texts."""
    files = {"config.yaml": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)}
    for outcome in outcomes:
        name = f"-{outcome.target}" if len(outcomes) > 1 else ""
        for period in outcome.chosen.periods:
            files |= _period_files(period, name)
    return files


def _points(outcome: TargetOutcome) -> Iterator[tuple[str, int, float]]:
    """Yield key, step and value of everything measured for one target."""
    for period in outcome.chosen.periods:
        rewards = read_pulls(period.draws)["reward"].to_numpy()
        name = f"period_{period.spec.period}"
        for step in (
            np.unique(np.linspace(0, len(rewards) - 1, POINTS_OF_A_CURVE).astype(int)) if len(rewards) else []
        ):
            so_far = rewards[: step + 1]
            yield f"{name}/reward_mean", int(step), float(so_far.mean())
            yield f"{name}/reward_best", int(step), float(so_far.max())
            yield f"{name}/budget_spent", int(step), float(step + 1)
    for training in outcome.chosen.trainings:
        for point in loss_history(training):
            yield "train/loss", point.step, point.loss
            yield "train/learning_rate", point.step, point.learning_rate
    for key, count in _excluded(outcome).items():
        yield f"excluded_samples{key}", 0, float(count)
    for subject in outcome.subjects:
        name = subject.subject.replace(":", "_")
        for key in SUBJECT_FIGURES:
            value = getattr(subject, key)
            if value is not None:
                yield f"{name}/{key}", 0, float(value)
        for stage, cost in subject.cost.items():
            for key, value in cost.items():
                yield f"{name}/{key}/{stage}", 0, float(value)


def _excluded(outcome: TargetOutcome) -> dict[str, int]:
    """Return how many samples a target's selections left out, in all and by `/stage/reason`; each once."""
    reasons = {
        item.sample_id: f"/{item.stage}/{item.reason}"
        for period in outcome.chosen.periods
        for item in (*candidate_exclusions(period.spec.candidates), *draw_exclusions(period.draws))
    }
    return {"": len(reasons), **Counter(reasons.values())}


def _period_files(period: PeriodDraws, name: str) -> Iterator[tuple[str, str]]:
    number = period.spec.period
    yield f"selection{name}-period-{number}.csv", read_selected(period.draws).write_csv()
    scores = read_scores(period.draws)
    if 0 < scores.height * scores.width <= MOST_SCORES:
        yield f"scores{name}-period-{number}.csv", scores.write_csv(float_precision=6)
    elif scores.height:
        logger.info(
            "the scores of period %d, %d samples x %d columns, stay in its artifact %s",
            number,
            scores.height,
            scores.width,
            period.draws.path,
        )


def setting_parameters(line: SettingSummary) -> dict[str, str]:
    """Return what names one setting of a comparison, and why it could not be replayed if so."""
    fields = line.model_dump(include=set(SETTING_PARAMETERS))
    return {key: str(value)[:MAX_PARAMETER_CHARS] for key, value in fields.items() if value is not None}


def setting_metrics(line: SettingSummary) -> Iterator[Metric]:
    """Yield the figures of one setting of a comparison; each period's captured influence by its number."""
    now = int(time.time() * 1000)
    for key, value in line.model_dump(exclude={*SETTING_PARAMETERS, "captured_by_period"}).items():
        if value is not None:
            yield Metric(key=key, value=float(value), step=0, timestamp_ms=now)
    for place, value in enumerate(line.captured_by_period, start=1):
        yield Metric(key="captured_influence_by_period", value=value, step=place, timestamp_ms=now)


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
