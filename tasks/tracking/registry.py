"""Adapters in the model registry: one model a target, a version a run, the alias `best` on the lowest loss.

Reads an adapter's two files; writes to MLflow. The files are kept as they are, so `peft` loads what
`models:/clusterucb-<target>@best` gives.
"""

import logging
from pathlib import Path
from typing import Any

from clusterucb_core.lineage import TrackedAdapter
from clusterucb_core.lm.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tasks.tracking.records import RUN_TAG

logger = logging.getLogger(__name__)

BEST = "best"
LOSS_TAG = "clusterucb.test_loss"
ROWS_TAG = "clusterucb.test_digest"


def keep_adapter(client: Any, mlflow_run_id: str, adapter: TrackedAdapter) -> None:
    """Keep an adapter as files of its run and as a version of its model; a second attempt changes nothing.

    An adapter whose folder is gone, as it may be when a record has waited for MLflow, is left out with a
    warning.
    """
    files = [Path(adapter.folder) / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    if missing := [path.name for path in files if not path.is_file()]:
        logger.warning(
            "the adapter of %s is not registered: %s is gone from %s; run the pipeline again to rebuild it",
            adapter.model,
            " and ".join(missing),
            adapter.folder,
        )
        return
    version = _version_of(client, adapter)
    if version is None:
        for path in files:
            client.log_artifact(mlflow_run_id, str(path), adapter.place)
        version = _register(client, mlflow_run_id, adapter)
    if adapter.test_loss is not None and _is_best(client, adapter, version):
        client.set_registered_model_alias(adapter.model, BEST, version)


def _version_of(client: Any, adapter: TrackedAdapter) -> str | None:
    wanted = f"name = '{adapter.model}' and tags.`{RUN_TAG}` = '{adapter.tags[RUN_TAG]}'"
    found = client.search_model_versions(wanted)
    return str(found[0].version) if found else None


def _register(client: Any, mlflow_run_id: str, adapter: TrackedAdapter) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            adapter.model,
            description=f"Adapters trained on selections for {adapter.tags['clusterucb.target']}",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = dict(adapter.tags)
    if adapter.test_loss is not None and adapter.test_digest is not None:
        tags |= {LOSS_TAG: repr(adapter.test_loss), ROWS_TAG: adapter.test_digest}
    source = f"runs:/{mlflow_run_id}/{adapter.place}"
    created = client.create_model_version(adapter.model, source, run_id=mlflow_run_id, tags=tags)
    logger.info("adapter registered as version %s of %s", created.version, adapter.model)
    return str(created.version)


def _is_best(client: Any, adapter: TrackedAdapter, version: str) -> bool:
    """Tell whether no other version had a lower loss on the same rows; of equal ones the first is best."""
    ranked = [
        (float(item.tags[LOSS_TAG]), int(item.version))
        for item in _every_version(client, adapter)
        if LOSS_TAG in item.tags
    ]
    return bool(ranked) and min(ranked)[1] == int(version)


def _every_version(client: Any, adapter: TrackedAdapter) -> list[Any]:
    same_rows = f"name = '{adapter.model}' and tags.`{ROWS_TAG}` = '{adapter.test_digest}'"
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(same_rows, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found
