"""Data types that cross the borders between stages."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clusterucb_core.frozen import Frozen

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One pool sample: a conversation with at least one assistant turn.

    `sample_id` is the hash of the messages; `source` is the name of the pool source it came from.
    """

    sample_id: str
    source: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    """Token ids [t] and labels [t] (-100 where no loss is taken) of one sample."""

    sample_id: str
    input_ids: IntArray
    labels: IntArray


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One validation or test row of a target; the last message is the gold assistant turn."""

    row_id: str
    subtask: str
    messages: tuple[Message, ...]
    choices: tuple[str, ...] = ()
    answer_index: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The task tuned for: its few validation rows, its test rows, their subtasks."""

    name: str
    validation: tuple[TargetRow, ...]
    test: tuple[TargetRow, ...]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A sample that one target, model or feature space cannot use, and why."""

    sample_id: str
    stage: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Clustering:
    """Cluster of each sample, labels [n] in 0..k-1, and unit centres [k, d]."""

    labels: IntArray
    centers: FloatArray


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One metric of one subject on one task, with a 95 % interval over n rows."""

    subject: str
    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int


class ArtifactRef(Frozen):
    """A finished artifact: the folder `path` that a stage wrote under `fingerprint`."""

    stage: str
    fingerprint: str
    path: str


class StageTime(Frozen):
    """What one run of the flow spent in a stage: calls, those that found their work done, and seconds."""

    stage: str
    calls: int
    cached: int
    seconds: float
