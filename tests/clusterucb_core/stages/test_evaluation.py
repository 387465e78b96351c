"""The evaluation of a tiny model on the demo's target, from the artifacts that a run gives it."""

import math

import numpy as np
import pytest

from clusterucb_core.config import load_config
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.lm.tokens import open_tokens
from clusterucb_core.planning import plan_run
from clusterucb_core.stages.evaluation import (
    evaluation_spec,
    read_losses,
    read_results,
    read_samples_of,
    read_scores,
    run_evaluation,
)
from clusterucb_core.stages.intake import TokensSpec, read_target, run_target, run_tokens

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
TASKS = "evaluate.tasks=[target, target_perplexity]"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The plan, the target, its test tokens and the evaluation of the base model on it."""
    config = write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config
    plan = plan_run(*load_config(config, [TASKS, "evaluate.limit=8"]), home=tmp_path_factory.mktemp("home"))
    target = run_target(plan.targets[0], plan.workspace)
    tokens = run_tokens(TokensSpec(source=target, split="test", model=plan.model), plan.workspace)
    spec = evaluation_spec(
        plan.config.evaluate, plan.model, checkpoint=None, target=target, test_tokens=tokens, seed=0
    )
    ref = run_evaluation(spec, plan.workspace, plan.execution, plan.config.evaluate)
    return target, tokens, ref


def test_perplexity_is_the_test_loss_with_rows_weighed_by_their_tokens(evaluated):
    target, tokens, ref = evaluated
    ids = _first_ids(target)
    weights = [int((row.labels[1:] != -100).sum()) for row in open_tokens(tokens).take(ids)]
    losses = read_losses(ref)
    assert len(set(weights)) > 1, "equal weights would hide a mean over rows"
    (found,) = [result for result in read_results(ref, "zero_shot") if result.metric == "perplexity"]
    assert found.value == pytest.approx(math.exp(np.average(losses, weights=weights)), rel=1e-5)
    assert found.low < found.value < found.high
    assert (found.task.removesuffix("_perplexity"), found.n) == (read_target(target).name, 8)


def test_scores_and_samples_are_those_of_the_rows_that_were_evaluated(evaluated):
    target, _, ref = evaluated
    scores = {item.metric: item for item in read_scores(ref)}
    assert set(scores) == {"exact_match", "log_perplexity"}
    assert scores["exact_match"].rows.tolist() == list(range(8))
    assert (scores["exact_match"].higher_is_better, scores["log_perplexity"].higher_is_better) == (
        True,
        False,
    )
    samples = read_samples_of(ref)
    assert [sample["row_id"] for sample in samples[:8]] == _first_ids(target)
    assert {sample["task"] for sample in samples} == {
        f"{read_target(target).name}_{kind}" for kind in ("generate", "perplexity")
    }


def _first_ids(target):
    return [row.row_id for row in read_target(target).test][:8]
