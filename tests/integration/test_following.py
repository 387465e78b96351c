"""A selection that follows another over a changed pool, stage by stage in plain Python."""

from types import SimpleNamespace

import numpy as np
import pytest

from clusterucb_core.config import load_config
from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.planning import plan_run
from clusterucb_core.stages.clusters import ClusterSpec, read_clustering, read_fit, run_clustering
from clusterucb_core.stages.drawn import read_pulls, read_selected
from clusterucb_core.stages.draws import run_draws
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.intake import candidate_ids
from clusterucb_core.stages.pool_change import following_spec, pool_change

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = ("warmup.epochs=2", "finetune.epochs=1")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module", params=["ucb_beta", "linucb"])
def followed(request, plain, config, tmp_path_factory):
    """A static selection from 300 samples, and the one that follows it where the pool has 340."""
    home = tmp_path_factory.mktemp("home")
    settings = (*SMALL, f"selection.policy={request.param}")
    first = plain.run_plain(config, home, *settings, "pool.max_samples=300")
    return SimpleNamespace(first=first, settings=settings, **followed_by(plain, first, config, settings))


def followed_by(plain, first, config, settings, *more):
    plan = plan_run(
        *load_config(config, [*settings, "pool.max_samples=340", *more]),
        home=first.plan.workspace.catalog.parent,
    )
    (inputs,) = plain.prepare(plan)
    earlier = first.chosen.periods[0]
    before = set(open_store(earlier.spec.spaces[0], plan.workspace).known)
    change = pool_change(inputs.candidates, first.inputs.candidates, first.inputs.trainable)
    spec = following_spec(earlier, change, tokens=inputs.tokens, candidates=inputs.candidates, run_id="again")
    at = spec.spaces[0]
    counted = list(zip(spec.spaces, spec.weights, strict=True))
    sides = plain.sides_for(plan, inputs, spec.settings, first=at, counted=counted)
    plain.featurize_sides(plan, inputs, sides, first=at)
    clustering = run_clustering(
        ClusterSpec(
            space=sides.clusters, tokens=sides.tokens, parts=sides.parts, candidates=inputs.drawable,
            settings=plan.config.clusters, features=plan.config.features, seed=plan.config.seed,
            followed=earlier.spec.clustering,
        ),
        plan.workspace,
    )  # fmt: skip
    spec = plain.with_spaces(spec, spec.spaces, spec.weights, clustering=clustering, sides=sides)
    draws = run_draws(spec, plan.workspace, plan.execution)
    return {
        "plan": plan, "spec": spec, "draws": draws, "change": change, "earlier": earlier,
        "before": before, "now": set(candidate_ids(inputs.candidates)),
    }  # fmt: skip


def test_what_the_followed_selection_drew_and_the_pool_still_holds_is_known(followed):
    drawn = set(read_pulls(followed.earlier.draws)["sample_id"]) & followed.now
    pulls = read_pulls(followed.draws)
    kinds = dict(pulls["kind"].value_counts().iter_rows())
    assert set(pulls.filter(pulls["kind"] == "known")["sample_id"]) == drawn
    assert sum(count for kind, count in kinds.items() if kind != "known") == 64
    assert pulls["sample_id"].n_unique() == len(pulls)


def test_the_best_of_all_that_is_known_and_drawn_is_selected(followed):
    pulls, selected = read_pulls(followed.draws), read_selected(followed.draws)
    assert len(selected) == 17  # 5 % of 340
    best = pulls["reward"].sort(descending=True).head(17).to_list()
    assert selected["influence"].to_list() == best


def test_known_rewards_are_those_that_were_seen(followed):
    before, now = read_pulls(followed.earlier.draws), read_pulls(followed.draws)
    both = before.join(now.filter(now["kind"] == "known"), on="sample_id")
    assert len(both) > 0
    np.testing.assert_array_equal(both["reward"], both["reward_right"])


def test_first_checkpoint_gradients_are_computed_for_new_samples_only(followed):
    store = open_store(followed.spec.spaces[0], followed.plan.workspace)
    added = store.known - followed.before
    assert added == followed.now - followed.before
    assert len(added) == followed.change.n_added
    assert {store.provenance(sample)["run_id"] for sample in added} == {followed.plan.run_id}


def test_samples_that_stay_keep_their_cluster(followed):
    was = dict(zip(*labels(followed.earlier.spec.clustering), strict=True))
    found = dict(zip(*labels(followed.spec.clustering), strict=True))
    assert read_fit(followed.spec.clustering).is_new is False
    assert {sample: found[sample] for sample in was if sample in found} == {
        sample: was[sample] for sample in was if sample in found
    }
    assert set(found) == followed.now


def test_above_the_drift_limit_the_pool_is_clustered_anew(followed, plain, config):
    drift = read_fit(followed.spec.clustering).drift
    if drift <= 0:
        pytest.skip(f"the new samples lie closer to the centres than the old ones (drift {drift:.4f})")
    again = followed_by(plain, followed.first, config, followed.settings, f"clusters.drift_limit={drift / 2}")
    assert read_fit(again["spec"].clustering).is_new is True


def labels(ref):
    ids, clustering = read_clustering(ref)
    return ids, clustering.labels.tolist()
