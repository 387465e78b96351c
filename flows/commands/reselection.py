"""`reselect`: the selection from a pool that has changed."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import AsJson, ConfigPath, Overrides, RunnerName
from flows.commands.failures import before_start, during_run
from flows.commands.running import configure
from flows.home import state_folder
from flows.rendering import count, counted, decimal, only_messages, percent, print_json, print_table, say

if TYPE_CHECKING:
    from clusterucb_core.reselection import ReselectionResult, TargetReselection
    from clusterucb_core.store import ChangeCounts

MOST_LINES = 12


def reselect(
    config: ConfigPath,
    overrides: Overrides = None,
    new_warmup: Annotated[
        bool, typer.Option("--new-warmup", help="Run the whole pipeline again instead of following a run.")
    ] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train and evaluate an adapter on the new selection.")
    ] = False,
    runner: RunnerName = None,
    as_json: AsJson = False,
) -> None:
    """Select again after the pool changed.

    It follows the newest run with the same settings, model and targets, and computes only what is new. A pool
    that has not changed makes no version.
    """
    configure()
    with only_messages():
        from clusterucb_core.config import load_config
        from clusterucb_core.planning import plan_run
        from clusterucb_core.trails import followed_trail
        from clusterucb_core.workspace import check_storage
        from flows.runners import choose_runner, visible_gpus

        more = [f"execution.runner={runner}"] if runner else []
        with before_start():
            settings, execution = load_config(config, [*(overrides or []), *more], variables=os.environ)
            plan = plan_run(settings, execution, home=state_folder())
            choose_runner(execution, visible_gpus())
            check_storage(plan.workspace)
        with during_run():
            followed_trail(plan)  # before Prefect is imported, which takes longer than this answer
            from flows.reselection import run_reselection

            result = run_reselection(settings, execution, new_warmup=new_warmup, train=train)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    _print_result(result)


def _print_result(result: "ReselectionResult") -> None:
    if not result.changed:
        kept = ", ".join(f"{item.selection_version} ({item.target})" for item in result.targets)
        say(f"the pool has not changed since selection version {kept}: nothing to do")
        return
    for number, target in enumerate(result.targets):
        _print_target(target, gap=number > 0)
    computed = counted(result.work.gradient_evaluations, "gradient evaluation")
    how = "after a new warmup" if result.new_warmup else f"following run {result.followed_run_id[:8]}"
    say(f"\npool version {result.pool_version}, {how}, {result.seconds:.1f} s; this call computed {computed}")
    newest = result.targets[0].selection_version
    say(f"\nthe selection   clusterucb show {newest}")
    say(f"row by row      clusterucb diff {result.targets[0].followed_version} {newest}")


def _print_target(target: "TargetReselection", *, gap: bool) -> None:
    change, found = target.change, target.difference
    assert change is not None, "a changed pool has counts"
    assert found is not None, "and a selection to compare with"
    say(
        ("\n" if gap else "")
        + f"target {target.target}: selection version {found.a} -> {found.b}; of {count(change.n_samples)} "
        f"samples {count(change.n_added)} are new, {count(change.n_removed)} are gone"
    )
    if target.fit is not None:
        state = (
            "clustered anew"
            if target.fit.is_new
            else f"assigned to their clusters, drift {target.fit.drift:+.3f}"
        )
        say(state)
    kept = found.total.kept + found.total.added
    say(f"{percent(found.total.kept, kept)} of the selection stays")
    for part, of_part in found.parts.items():
        print_table([part, "added", "removed", "kept", "mean rank move"], _rows(of_part), gap=True)


def _rows(counts: "tuple[ChangeCounts, ...]") -> list[list[object]]:
    shown: list[list[object]] = [
        [
            item.name,
            count(item.added),
            count(item.removed),
            count(item.kept),
            None if item.mean_rank_move is None else decimal(item.mean_rank_move),
        ]
        for item in counts[:MOST_LINES]
    ]
    if len(counts) > MOST_LINES:
        shown.append([f"({len(counts) - MOST_LINES} more)", None, None, None, None])
    return shown
