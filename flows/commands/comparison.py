"""`compare`: policies and budgets beside full-gradient selection, as a table and a chart."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import AsJson, ConfigPath, Overrides, RunnerName
from flows.commands.failures import before_start, during_run
from flows.commands.results import mlflow_place
from flows.commands.running import configure
from flows.home import state_folder
from flows.rendering import (
    count,
    counted,
    decimal,
    interval,
    only_messages,
    percent,
    print_json,
    print_table,
    say,
    tell,
)

if TYPE_CHECKING:
    from clusterucb_core.comparison import ComparisonResult
    from clusterucb_core.estimate import ComparisonEstimate
    from clusterucb_core.execution import ExecutionSettings
    from clusterucb_core.planning import RunPlan
    from clusterucb_core.stages.comparison_summary import SettingSummary

OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FOLDER", help="Also copy the table and the chart there.", show_default=False
    ),
]


def compare(
    config: ConfigPath,
    overrides: Overrides = None,
    runner: RunnerName = None,
    out: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Compare policies and budgets with full-gradient selection.

    Gradients of the whole pool are computed once; every policy and budget is replayed on them.
    """
    result = _compared(config, [*(overrides or []), *([f"execution.runner={runner}"] if runner else [])])
    with during_run():
        from clusterucb_core.comparison import copy_files, kept_replays

        shown = result if out is None else copy_files(result, out)
        replays = kept_replays(shown)
    if as_json:
        print_json(shown.model_dump(mode="json") | {"replays": replays.to_dicts()})
        return
    _print_settings(shown)
    _print_notes(shown, n_replays=len(replays))


def _compared(config: Path, overrides: list[str]) -> "ComparisonResult":
    configure()
    with only_messages():
        from clusterucb_core.comparison import finished_comparison
        from clusterucb_core.config import load_config
        from clusterucb_core.planning import plan_comparison

        with before_start():
            settings, execution = load_config(config, overrides, variables=os.environ)
            plan = plan_comparison(settings, execution, home=state_folder())
        known = finished_comparison(plan)
        if known is not None:
            return known  # without the import of Prefect and MLflow, which takes longer than all the rest
        _tell_cost(plan, execution)
        from flows.comparison import run_comparison

        with during_run():
            return run_comparison(settings, execution)


def _tell_cost(plan: "RunPlan", execution: "ExecutionSettings") -> None:
    from clusterucb_core.estimate import estimate_comparison
    from clusterucb_core.stages.intake import run_ingest
    from clusterucb_core.workspace import check_storage
    from flows.orchestrator import check_server
    from flows.runners import choose_runner, visible_gpus

    with before_start():
        check_server(state_folder())
        choose_runner(execution, visible_gpus())
        check_storage(plan.workspace)
    with during_run():
        run_ingest(plan.ingest, plan.workspace)
        estimate = estimate_comparison(plan)
    for line in expected_work(estimate):
        tell(line)


def expected_work(estimate: "ComparisonEstimate") -> list[str]:
    """Return in words what a comparison is about to compute."""
    lines = [
        f"full selection takes at most {estimate.gradient_evaluations:,} gradient evaluations: "
        f"{counted(estimate.n_samples, 'sample')} at {counted(estimate.n_checkpoints, 'checkpoint')}, less "
        f"what the store holds; {counted(estimate.n_replays, 'replay')} on them compute none; "
        "compare.max_samples=N compares on a part of the pool"
    ]
    if estimate.n_selections:
        lines.append(
            f"compare.finetune: {counted(estimate.n_selections, 'selection')} are made and trained on for "
            f"real, with at most {estimate.selection_evaluations:,} gradient evaluations of their own"
        )
    return lines


def _print_settings(result: "ComparisonResult") -> None:
    several, trained = len(result.periods) > 1, any(line.loss is not None for line in result.settings)
    audited = result.audit_fraction > 0
    headers = ["policy", "budget", "captured influence", "recall", "gradient evaluations", "of full", "flops"]
    headers += ["by period"] if several else []
    headers += ["interval held"] if audited else []
    headers += ["test loss [95 %]"] if trained else []
    for number, target in enumerate(result.targets):
        if len(result.targets) > 1:
            say(("\n" if number else "") + f"target {target}")
        lines = [line for line in result.settings if line.target == target]
        rows = [_cells(line, several=several, audited=audited, trained=trained) for line in lines]
        print_table(headers, rows)


def _cells(line: "SettingSummary", *, several: bool, audited: bool, trained: bool) -> list[str | None]:
    cells = [
        line.policy,
        None if line.budget_fraction is None else percent(line.budget_fraction, 1),
        _with_error(line.captured_influence, line.captured_se),
        _with_error(line.recall, line.recall_se),
        None if line.gradient_evaluations is None else count(round(line.gradient_evaluations)),
        None if line.gradient_cost is None else percent(line.gradient_cost, 1),
        None if line.flops_share is None else percent(line.flops_share, 1),
    ]
    if several:
        cells.append(" ".join(f"{value:.2f}" for value in line.captured_by_period) or None)
    if audited:
        cells.append(None if line.covered is None else percent(line.covered, 1))
    if trained:
        cells.append(interval(line.loss, line.loss_low, line.loss_high))
    return cells


def _with_error(mean: float | None, error: float | None) -> str | None:
    return decimal(mean, 3) if error is None else f"{decimal(mean, 3)} ± {decimal(error, 3)}"


def _print_notes(result: "ComparisonResult", *, n_replays: int) -> None:
    from clusterucb_core.comparison import CHART, REPLAYS, TABLE

    for line in result.settings:
        if line.note is not None:
            tell(f"{line.target}, {line.policy} at {percent(line.budget_fraction or 0.0, 1)}: {line.note}")
    say(f"\n{_means_of(result)}")
    audit = f"an audit of {percent(result.audit_fraction, 1)} of the pool" if result.audit_fraction else None
    say(f"{audit or 'no audit'} is part of each budget")
    say(
        f"{counted(result.n_samples, 'sample')}, {counted(n_replays, 'replay')}; this call computed "
        f"{counted(result.work.gradient_evaluations, 'gradient evaluation')}, "
        f"{counted(result.work.trainings, 'training')} in {result.seconds:.1f} s"
    )
    say(f"\ntable     {Path(result.folder) / TABLE}")
    say(f"chart     {Path(result.folder) / CHART}")
    say(f"replays   {Path(result.folder) / REPLAYS}")
    say(f"MLflow    {mlflow_place()}")


def _means_of(result: "ComparisonResult") -> str:
    """Return what the means are over, and what the costs hold."""
    seeds = counted(result.seeds, "seed")
    if result.mode == "static":
        return f"mean ± standard error over {seeds}; costs hold the pass over the pool that clusters it"
    periods = ", ".join(map(str, result.periods))
    return (
        f"mean ± standard error over {seeds} and the re-selections of periods {periods}; costs are those of "
        "a whole run,\nwhose first selection takes a gradient of every sample under all policies but random"
    )
