"""The fixed facts of a run, resolved before its first stage: model, inputs, their digests, the run's id.

Reads the files that the configuration names, to digest them, and from the catalog what was withdrawn.
"""

import importlib.metadata
from pathlib import Path

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.config import RunConfig, config_digest
from clusterucb_core.errors import InvalidConfig
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.loading import resolve_device
from clusterucb_core.selection import check_selection, needs_proxy
from clusterucb_core.stages.comparison import check_comparison
from clusterucb_core.stages.evaluable import check_tasks, load_shipped_tasks
from clusterucb_core.stages.intake import IngestSpec, TargetSpec, ingest_spec, target_spec
from clusterucb_core.stages.models import ModelRef, resolve_model, resolve_proxy
from clusterucb_core.store import withdrawn_ids
from clusterucb_core.targets.catalog import load_target
from clusterucb_core.workspace import Workspace, stage_key


class RunPlan(Frozen):
    """A run's configuration with everything resolved that its stages are named by.

    `selection_keys` holds, by target, a fingerprint of all that determines what is selected for it, but for
    the other targets of the run: these change a selection only where pool samples leak into their test rows,
    and what a version is found by covers that (`stages.publication.version_key`). `lineage` names everything
    that selects but the pool: a re-selection follows a run of its own lineage.
    """

    run_id: str
    lineage: str
    selection_keys: dict[str, str]
    config: RunConfig
    config_digest: str
    code_version: str
    execution: ExecutionSettings
    workspace: Workspace
    model: ModelRef
    proxy: ModelRef | None = None
    ingest: IngestSpec
    targets: tuple[TargetSpec, ...]


def plan_run(config: RunConfig, execution: ExecutionSettings, *, home: Path) -> RunPlan:
    """Resolve and check everything that can be known before a stage runs.

    Args:
        config: what to compute; paths in it are absolute or relative to the working folder.
        execution: how to execute it.
        home: the state folder.

    Raises:
        InvalidConfig: settings that cannot be run.
        InvalidPool, InvalidTarget, InvalidModel: an input that cannot be read.
        CatalogBusy: another process kept the catalog, which says what was withdrawn.
    """
    check_selection(config.selection)
    here = Path.cwd()
    device = resolve_device(execution.device)
    targets = tuple(target_spec(settings, here) for settings in config.all_targets)
    workspace = Workspace(home=str(home.absolute()), storage_root=execution.storage_root)
    ingest = ingest_spec(config.pool, here, withdrawn=withdrawn_ids(workspace.catalog))
    model = resolve_model(config.model, device)
    proxy = _proxy(config, device)
    # sources, target and models are keyed by their content
    unkeyed = dict.fromkeys(("target", "targets", "model", "compare", "reselect"), True)
    settings = config.model_dump(
        mode="json", exclude=unkeyed | {"pool": {"sources"}, "selection": {"proxy_model"}}
    )
    pool, keys = stage_key(ingest), [stage_key(target) for target in targets]
    models = [model.digest, *([proxy.digest] if proxy else [])]
    selecting = {name: settings[name] for name in settings if name != "evaluate"}
    following = {name: selecting[name] for name in selecting if name != "pool"}
    return RunPlan(
        run_id=fingerprint([pool, *keys, *models], settings),
        lineage=fingerprint("lineage", [*keys, *models], following),
        selection_keys={
            target.settings.name: fingerprint([pool, key, *models], selecting)
            for target, key in zip(targets, keys, strict=True)
        },
        config=config,
        config_digest=config_digest(config),
        code_version=importlib.metadata.version("clusterucb"),
        execution=execution,
        workspace=workspace,
        model=model,
        proxy=proxy,
        ingest=ingest,
        targets=targets,
    )


def check_evaluation(plan: RunPlan, *, load: bool) -> None:
    """Check that what a run is to evaluate at its end can be evaluated, before it computes anything.

    Args:
        plan: the run.
        load: also load the tasks that lm-eval ships, with their data.

    Raises:
        InvalidConfig: a task is unknown or cannot be loaded, or would run code that is not allowed.
        InvalidTarget: a target has no test rows for tasks that are made of them.
        NoSandbox: code is to be run and cannot be isolated on this machine.
    """
    if not plan.config.evaluate.tasks:
        return
    targets = [load_target(spec.settings, Path(spec.base_folder)) for spec in plan.targets]
    check_tasks(plan.config.evaluate, targets)
    if load:
        load_shipped_tasks(plan.config.evaluate, targets)


def plan_comparison(config: RunConfig, execution: ExecutionSettings, *, home: Path) -> RunPlan:
    """Resolve and check a comparison of policies and budgets; its pool is what `compare.max_samples` leaves.

    Its id is not that of a run with the same configuration, so that no run counts as its own what a
    comparison has computed.

    Args:
        config: what to compute.
        execution: how to execute it.
        home: the state folder.

    Raises:
        InvalidConfig: there is one selection only, or settings that this version cannot run.
        BudgetError: a budget that no policy could be replayed with.
        InvalidPool, InvalidTarget, InvalidModel: an input that cannot be read.
    """
    if config.mode == "dynamic" and config.finetune.epochs == 1:
        raise InvalidConfig(
            "finetune.epochs=1 in dynamic mode is one selection, for which every policy takes the gradients "
            "of the whole pool: there is nothing to compare; raise finetune.epochs, or set mode=static"
        )
    if (config.clusters.features, config.selection.context) != ("gradient", "gradient"):
        raise InvalidConfig(
            f"clusters.features={config.clusters.features} and selection.context={config.selection.context}: "
            "policies are replayed after the gradient pass that full selection makes anyway; set both to "
            "gradient"
        )
    check_comparison(config.compare, config.selection)
    plan = plan_run(_compared_pool(config), execution, home=home)
    return plan.model_copy(update={"run_id": fingerprint("compare", plan.run_id, config.compare)})


def _proxy(config: RunConfig, device: str) -> ModelRef | None:
    if not needs_proxy(config.selection) or config.selection.proxy_model is None:
        return None
    return resolve_proxy(config.model, config.selection.proxy_model, device)


def _compared_pool(config: RunConfig) -> RunConfig:
    limits = [n for n in (config.pool.max_samples, config.compare.max_samples) if n is not None]
    pool = config.pool.model_copy(update={"max_samples": min(limits, default=None)})
    return config.model_copy(update={"pool": pool})
