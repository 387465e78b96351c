"""What is sent to MLflow, as it also waits in a file where MLflow cannot be reached."""

from pydantic import Base64Bytes, Field

from clusterucb_core.frozen import Frozen
from clusterucb_core.lineage import TrackedAdapter, TrackedDataset
from clusterucb_core.tracks import Metric

RUN_TAG = "clusterucb.run_id"
PARENT_TAG = "mlflow.parentRunId"


class Tracking(Frozen):
    """The MLflow run of a pipeline run; `mlflow_run_id` is None while MLflow cannot be reached."""

    mlflow_run_id: str | None
    tags: dict[str, str]


class Record(Frozen):
    """Everything that MLflow keeps of one run, its images and the runs nested in it included.

    Of an adapter it holds the folder, which is read when the record is sent.
    """

    tags: dict[str, str]
    parameters: dict[str, str]
    metrics: tuple[Metric, ...]
    files: dict[str, str]
    images: dict[str, Base64Bytes] = Field(default_factory=dict)
    datasets: tuple[TrackedDataset, ...] = ()
    adapters: tuple[TrackedAdapter, ...] = ()
    name: str = ""
    nested: tuple["Record", ...] = ()
