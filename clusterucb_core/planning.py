"""The fixed facts of a run, resolved before its first stage: model, inputs, their digests, the run's id.

Reads the files that the configuration names, to digest them.
"""

import importlib.metadata
from pathlib import Path

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.config import RunConfig, config_digest
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.loading import resolve_device
from clusterucb_core.selection import check_selection
from clusterucb_core.stages.clusters import check_clusters
from clusterucb_core.stages.intake import IngestSpec, TargetSpec, ingest_spec, target_spec
from clusterucb_core.stages.models import ModelRef, resolve_model
from clusterucb_core.workspace import Workspace, stage_key


class RunPlan(Frozen):
    """A run's configuration with everything resolved that its stages are named by.

    `selection_key` names its selections: all that `run_id` covers, but for how they are evaluated.
    """

    run_id: str
    selection_key: str
    config: RunConfig
    config_digest: str
    code_version: str
    execution: ExecutionSettings
    workspace: Workspace
    model: ModelRef
    ingest: IngestSpec
    target: TargetSpec


def plan_run(config: RunConfig, execution: ExecutionSettings, *, home: Path) -> RunPlan:
    """Resolve and check everything that can be known before a stage runs.

    Args:
        config: what to compute; paths in it are absolute or relative to the working folder.
        execution: how to execute it.
        home: the state folder.

    Raises:
        InvalidConfig: settings that this version cannot run.
        InvalidPool, InvalidTarget, InvalidModel: an input that cannot be read.
    """
    check_selection(config.selection)
    check_clusters(config.clusters)
    here = Path.cwd()
    device = resolve_device(execution.device)
    target = target_spec(config.only_target, here)
    ingest = ingest_spec(config.pool, here)
    model = resolve_model(config.model, device)
    # sources, target and model are keyed by their content
    unkeyed = {"pool": {"sources"}, "target": True, "targets": True, "model": True, "compare": True}
    settings = config.model_dump(mode="json", exclude=unkeyed)
    inputs = [stage_key(ingest), stage_key(target), model.digest]
    return RunPlan(
        run_id=fingerprint(inputs, settings),
        selection_key=fingerprint(inputs, {name: settings[name] for name in settings if name != "evaluate"}),
        config=config,
        config_digest=config_digest(config),
        code_version=importlib.metadata.version("clusterucb"),
        execution=execution,
        workspace=Workspace(home=str(home.absolute()), storage_root=execution.storage_root),
        model=model,
        ingest=ingest,
        target=target,
    )
