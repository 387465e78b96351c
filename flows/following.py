"""The trajectory of a re-selection: the periods of the run that it follows, over the pool as it is now."""

from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.pool_change import PoolChange, following_spec
from clusterucb_core.stages.publication import PeriodDraws
from clusterucb_core.stages.summary import Trajectory
from clusterucb_core.stages.training import checkpoint_refs, finetune_spec, period_spec
from flows.features import Checkpoints, with_features
from flows.preparation import Inputs
from flows.selection import later_steps, paid
from tasks.finetune import finetune
from tasks.selection import draw_selection


def follow(plan: RunPlan, inputs: Inputs, chosen: Trajectory, change: PoolChange) -> Trajectory:
    """Select again in every period of a selection, at its checkpoints; nothing is trained.

    Args:
        plan: the run.
        inputs: what its files became.
        chosen: the selection that is followed.
        change: what joined and left its candidates.
    """
    first = next((space for period in chosen.periods for space in period.spec.spaces), None)
    periods: list[PeriodDraws] = []
    clustering = None
    for earlier in chosen.periods:
        spec = following_spec(
            earlier, change, tokens=inputs.tokens, candidates=inputs.candidates, run_id=plan.run_id
        )
        if first is not None:
            at = Checkpoints(spaces=spec.spaces, weights=spec.weights, first=first)
            before = earlier.spec.clustering
            spec = with_features(plan, inputs, spec, at, clustering=clustering, followed=before)
            clustering = spec.clustering
        draws = draw_selection(spec, plan.workspace, plan.execution)
        periods.append(PeriodDraws(spec=spec, draws=draws))
    return chosen.model_copy(
        update={
            "periods": tuple(periods),
            "checkpoint": None,
            # the warmup, where there is one: later re-selections follow it too
            "trainings": chosen.trainings[:1] if chosen.warmup else (),
        }
    )


def train_on(plan: RunPlan, inputs: Inputs, chosen: Trajectory) -> Trajectory:
    """Train on the selections of a trajectory from its warmup on, and return it with the adapter.

    In dynamic mode every period trains on its own selection; the gradients that selected it were taken at the
    checkpoints of the run that is followed, not at those of this training.
    """
    if plan.config.mode == "static":
        draws = chosen.periods[-1].draws
        spec = finetune_spec(
            plan.config.finetune, plan.model, tokens=inputs.tokens, draws=draws, seed=plan.config.seed
        )
        tuned = [finetune(paid(spec, plan), plan.workspace, plan.execution)]
    else:
        tuned = _train_periods(plan, inputs, chosen)
    checkpoint = checkpoint_refs(tuned[-1])[-1]
    return chosen.model_copy(update={"checkpoint": checkpoint, "trainings": (*chosen.trainings, *tuned)})


def _train_periods(plan: RunPlan, inputs: Inputs, chosen: Trajectory) -> list[ArtifactRef]:
    assert chosen.warmup is not None, "dynamic mode has a warmup"
    assert chosen.warmup.steps is not None, "which is so many steps long"
    total = chosen.warmup.steps + later_steps(plan, inputs)
    warm = chosen.warmup.model_copy(update={"tokens": inputs.tokens, "total_steps": total})
    checkpoint = checkpoint_refs(chosen.trainings[0])[-1]
    tuned: list[ArtifactRef] = []
    for period in chosen.periods:
        spec = period_spec(
            plan.config.finetune,
            warmup=warm,
            start=checkpoint,
            draws=period.draws,
            period=period.spec.period,
        )
        tuned.append(finetune(paid(spec, plan), plan.workspace, plan.execution))
        checkpoint = checkpoint_refs(tuned[-1])[-1]
    return tuned
