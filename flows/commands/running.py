"""`run`, `ingest` and `check`: the commands that take a configuration."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.arguments import AsJson, ConfigPath, Overrides, RunnerName
from flows.commands.failures import Refused, before_start, during_run
from flows.commands.results import print_next_steps, print_targets
from flows.home import configure_services, state_folder
from flows.rendering import count, counted, only_messages, print_json, print_table, say, size

if TYPE_CHECKING:
    from clusterucb_core.config import RunConfig
    from clusterucb_core.estimate import Estimate
    from clusterucb_core.execution import ExecutionSettings
    from clusterucb_core.outcome import RunResult
    from clusterucb_core.pool.ingest import IngestCounts
    from clusterucb_core.store import PoolVersion


def run(
    config: ConfigPath, overrides: Overrides = None, runner: RunnerName = None, as_json: AsJson = False
) -> None:
    """Run the pipeline.

    A repeat with nothing changed does no work and returns the same selection version.
    """
    result = run_file(config, [*(overrides or []), *([f"execution.runner={runner}"] if runner else [])])
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    print_targets(result)
    print_next_steps(result)


def run_file(config: ConfigPath, overrides: list[str]) -> "RunResult":
    """Check a configuration file, then run it.

    Raises:
        Refused: it cannot be run.
        RunFailed: it was started and failed.
    """
    configure()
    with only_messages():
        from clusterucb_core.config import load_config
        from clusterucb_core.outcome import finished_result
        from clusterucb_core.planning import check_evaluation, plan_run

        with before_start():
            settings, execution = load_config(config, overrides, variables=os.environ)
            plan = plan_run(settings, execution, home=state_folder())
        with during_run():
            known = finished_result(plan)
        if known is not None:
            return known  # without the import of Prefect and MLflow, which takes longer than all the rest
        from clusterucb_core.workspace import check_storage
        from flows.orchestrator import check_server

        with before_start():
            check_server(state_folder())
        from flows.runners import choose_runner, visible_gpus

        with before_start():
            choose_runner(execution, visible_gpus())
            check_evaluation(plan, load=False)
            check_storage(plan.workspace)
        from flows.pipeline import run_pipeline

        with during_run():
            return run_pipeline(settings, execution)


def ingest(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Read the pool only, and count what became of its rows."""
    configure()
    from clusterucb_core.config import load_config
    from clusterucb_core.pool.ingest import ingest_counts
    from clusterucb_core.stages.intake import ingest_spec, run_ingest
    from clusterucb_core.stages.publication import publish_pool
    from clusterucb_core.store import withdrawn_ids
    from clusterucb_core.workspace import Workspace

    with before_start():
        settings, execution = load_config(config, overrides or [], variables=os.environ)
        workspace = Workspace(home=str(state_folder()), storage_root=execution.storage_root)
        spec = ingest_spec(settings.pool, Path.cwd(), withdrawn=withdrawn_ids(workspace.catalog))
    with during_run(), only_messages():
        pool = run_ingest(spec, workspace)
        version, counts = publish_pool(pool, workspace), ingest_counts(pool)
        _announce(version)
    if as_json:
        print_json({**version.model_dump(mode="json"), "counts": counts.model_dump(mode="json")})
        return
    _print_counts(counts)
    state = "created" if version.created else "unchanged"
    say(
        f"\npool version {version.pool_version} {state}: {counted(version.n_samples, 'sample')}, "
        f"{version.n_added:,} added and {version.n_removed:,} removed against "
        + (f"version {version.parent_version}" if version.parent_version else "nothing")
    )


def check(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Validate a configuration and estimate the cost.

    Checks everything that can be known before a model loads; changes nothing.
    """
    configure()
    with only_messages():
        from clusterucb_core.config import load_config
        from clusterucb_core.workspace import Workspace

        with before_start():
            settings, execution = load_config(config, overrides or [], variables=os.environ)
            estimate = estimated(settings, execution)
    if as_json:
        print_json(estimate.model_dump(mode="json"))
        return
    _print_estimate(estimate)
    if Workspace(home=str(state_folder()), storage_root=execution.storage_root).is_mirrored:
        say(f"\n{execution.storage_root} can be written and read")
    say("\nthe configuration can be run")


def estimated(config: "RunConfig", execution: "ExecutionSettings") -> "Estimate":
    """Check a configuration as far as that can be done before a model loads, and return what it takes.

    Raises:
        ClusterUcbError: it cannot be run.
    """
    from clusterucb_core.estimate import estimate_run
    from clusterucb_core.planning import plan_run
    from clusterucb_core.workspace import check_storage
    from flows.runners import choose_runner

    choose_runner(execution, gpus=0)
    plan = plan_run(config, execution, home=state_folder())
    check_storage(plan.workspace)
    return estimate_run(plan)


def _announce(version: "PoolVersion") -> None:
    """Emit the event of a new pool version to the Prefect server that the user has named."""
    if version.created and os.environ.get("PREFECT_API_URL"):
        from flows.events import announce_pool
        from flows.orchestrator import served

        with served():
            announce_pool(version)


def configure() -> None:
    """Give the services their folders; it comes before the imports, which read them."""
    try:
        configure_services(state_folder())
    except OSError as error:
        raise Refused(
            f"the state folder {state_folder()} cannot be used: {error}; set CLUSTERUCB_HOME to one that can"
        ) from error


def _print_counts(counts: "IngestCounts") -> None:
    rows = [
        [
            source.source,
            ", ".join(f"{reason} {number:,}" for reason, number in sorted(source.quarantined.items()))
            or None,
            count(source.rows_read),
            count(source.samples_read),
            count(source.kept),
            count(source.duplicates),
            count(source.withdrawn),
            count(sum(source.quarantined.values())),
        ]
        for source in counts.sources
    ]
    total = [counts.rows_read, counts.samples_read, counts.n_samples, counts.duplicates, counts.withdrawn]
    rows.append(["total", None, *map(count, total), count(sum(counts.quarantined.values()))])
    headers = ["source", "reasons of quarantine", "rows read", "samples", "kept", "duplicate", "withdrawn"]
    headers.append("quarantined")
    print_table(headers, rows, left=2)


def _print_estimate(estimate: "Estimate") -> None:
    facts = {
        "samples in the pool": estimate.n_pool,
        "samples that count (pool.max_samples)": estimate.n_samples,
        **({"targets": estimate.n_targets} if estimate.n_targets > 1 else {}),
        "validation rows": estimate.n_validation,
        "test rows": estimate.n_test,
        "selected": estimate.n_selected,
        "budget": estimate.budget_samples,
        "clusters": estimate.n_clusters,
        "cold start, about": estimate.cold_start_samples,
        "checkpoints": estimate.n_checkpoints,
    }
    print_table(["", ""], [[name, count(value)] for name, value in facts.items()])
    stages = [
        *estimate.gradient_evaluations.items(),
        ("full selection, to compare", estimate.full_gradient_evaluations),
    ]
    print_table(
        ["gradient evaluations, at most", ""], [[name, count(value)] for name, value in stages], gap=True
    )
    if estimate.forward_passes:
        passes = [[name, count(value)] for name, value in estimate.forward_passes.items()]
        print_table(["forward passes without a gradient, at most", ""], passes, gap=True)
    disk = [[name, size(value)] for name, value in estimate.disk_bytes.items()]
    print_table(["disk, at most", ""], disk, gap=True)
    print_table(
        ["memory, without activations", ""],
        [[n, size(v)] for n, v in estimate.memory_bytes.items()],
        gap=True,
    )
    for warning in estimate.warnings:
        say(f"\nwarning: {warning}")
