"""The comparison: policies and budgets replayed on the gradients of full selection, computed once."""

import time

from prefect import flow
from prefect.runtime import flow_run

from clusterucb_core.comparison import ComparisonResult, comparison_spec, finished_comparison
from clusterucb_core.config import RunConfig
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.frozen import Frozen
from clusterucb_core.planning import RunPlan, plan_comparison
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.comparison import Setting, draw_seed, possible_repetitions, setting_selection
from clusterucb_core.stages.comparison_summary import SettingSummary, Trained
from clusterucb_core.stages.intake import pool_size
from clusterucb_core.stages.summary import Trajectory, spaces_of, trainings_of
from flows.calls import at_work, called_here
from flows.evaluation import evaluate_subject
from flows.home import configure_tracking, state_folder
from flows.preparation import Inputs, chance_inputs, prepare
from flows.progress import show_settings
from flows.selection import select, select_by
from flows.watching import Watch, figures_of, watched
from tasks.compare import compare_policies, keep_comparison, summarise_comparison
from tasks.evaluate import count_work
from tasks.tracking import finish_comparison_tracking, start_comparison_tracking


def run_comparison(config: RunConfig, execution: ExecutionSettings) -> ComparisonResult:
    """Compare in this process.

    A comparison whose inputs and settings were seen before returns its result without starting a flow.
    """
    known = finished_comparison(plan_comparison(config, execution, home=state_folder()))
    if known is not None:
        return known
    with called_here(execution):
        return clusterucb_compare(config, execution)


@flow(name="clusterucb-compare", persist_result=False)
def clusterucb_compare(
    config: RunConfig,
    execution: ExecutionSettings = ExecutionSettings(),  # noqa: B008
) -> ComparisonResult:
    """Compare policies and budgets with full-gradient selection.

    Args:
        config: What to compute; its section `compare` says what is compared.
        execution: How to execute it; it changes no result.
    """
    started_at = time.time()
    configure_tracking(state_folder())
    with at_work(execution):
        plan = plan_comparison(config, execution, home=state_folder())
        with watched(plan) as watch:
            return _compare(plan, watch, started_at=started_at)


class _Compared(Frozen):
    """What a comparison came to for one target."""

    periods: tuple[int, ...]
    replays: ArtifactRef
    settings: tuple[SettingSummary, ...]
    trajectories: tuple[Trajectory, ...]


def _compare(plan: RunPlan, watch: Watch, *, started_at: float) -> ComparisonResult:
    tracking = start_comparison_tracking(plan, flow_run.id, flow_run.ui_url)
    targets = prepare(plan)
    compared = [_compare_for(plan, inputs) for inputs in targets]
    settings = [line for item in compared for line in item.settings]
    made = [trajectory for item in compared for trajectory in item.trajectories]
    work = count_work(started_at, spaces_of(made), trainings_of(made), plan.workspace)
    result = ComparisonResult(
        run_id=plan.run_id,
        targets=tuple(inputs.name for inputs in targets),
        mode=plan.config.mode,
        n_samples=pool_size(targets[0].candidates),
        periods=compared[0].periods,
        seeds=plan.config.compare.seeds,
        audit_fraction=plan.config.selection.audit_fraction,
        settings=tuple(settings),
        folder="",
        work=work,
        mlflow_run_id=tracking.mlflow_run_id,
        seconds=round(time.time() - started_at, 1),
    )
    kept = keep_comparison(plan, result, [item.replays for item in compared])
    finish_comparison_tracking(plan, tracking, kept, figures_of(watch, targets[0].pool_version, work))
    show_settings(settings, plan.run_id)
    return kept


def _compare_for(plan: RunPlan, inputs: Inputs) -> _Compared:
    oracle = select(plan, inputs, subject="full")
    spec = comparison_spec(plan, oracle.periods, inputs.validation_tokens)
    replays = compare_policies(spec, plan.workspace, plan.execution)
    repeated = possible_repetitions(spec, replays) if plan.config.compare.finetune else []
    tuned = [_fine_tuned(plan, inputs, setting, number=number) for setting, number in repeated]
    settings = summarise_comparison(replays, spec.settings, [trained for _, trained in tuned])
    return _Compared(
        periods=tuple(period.period for period in spec.periods),
        replays=replays,
        settings=tuple(settings),
        trajectories=(oracle, *(trajectory for trajectory, _ in tuned)),
    )


def _fine_tuned(
    plan: RunPlan, inputs: Inputs, setting: Setting, *, number: int
) -> tuple[Trajectory, Trained]:
    """Select for real by one setting, train on the selections, and measure the test loss."""
    trajectory = select_by(
        plan,
        chance_inputs(inputs) if setting.policy == "random" else inputs,
        setting_selection(plan.config.selection, setting),
        subject=setting.policy,
        seed=draw_seed(plan.config.seed, setting, number),
    )
    evaluation = evaluate_subject(plan, inputs, trajectory.checkpoint)
    return trajectory, Trained(setting=setting, evaluation=evaluation)
