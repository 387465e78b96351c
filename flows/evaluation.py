"""The evaluation of one subject of a run."""

from clusterucb_core.planning import RunPlan
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.evaluation import evaluation_spec
from clusterucb_core.stages.models import CheckpointRef
from flows.preparation import Inputs
from tasks.evaluate import evaluate


def evaluate_subject(plan: RunPlan, inputs: Inputs, checkpoint: CheckpointRef | None) -> ArtifactRef:
    """Measure the test loss and the tasks of an adapter, or of the base model where there is none."""
    spec = evaluation_spec(
        plan.config.evaluate,
        plan.model,
        checkpoint=checkpoint,
        target=inputs.target,
        test_tokens=inputs.test_tokens,
        seed=plan.config.seed,
    )
    return evaluate(spec, plan.workspace, plan.execution, plan.config.evaluate)
