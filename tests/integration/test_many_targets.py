"""Several targets in one run: what depends on no target is shared, and each gets what it gets alone."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.families import draw_different, generator_of
from clusterucb_core.demo.target import write_target
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.stages.drawn import read_pulls, read_selected
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.intake import candidate_exclusions, candidate_ids
from clusterucb_core.stages.scores import plain_space
from clusterucb_core.stages.summary import Work
from clusterucb_core.store import open_catalog, selection_evaluations

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
# side information leads the two targets to other samples, so that a mix-up of them would show
SMALL = (
    "pool.max_samples=300", "warmup.epochs=2", "finetune.epochs=1", "clusters.k=8", "selection.policy=linucb",
    "selection.context=gradient",
)  # fmt: skip
DYNAMIC = (
    "pool.max_samples=300", "mode=dynamic", "warmup.steps=3", "finetune.epochs=4", "selection.policy=linucb",
    "selection.context=gradient", "selection.budget_fraction=0.1", "selection.audit_fraction=0.02",
)  # fmt: skip
EACH_MODE = pytest.mark.parametrize("mode", ["static", pytest.param("dynamic", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config.parent


@pytest.fixture(scope="module")
def config_of(folder):
    """Write the demo's configuration for the named families; `unit_conversion` is the demo's own target."""

    def written(*families):
        tree = yaml.safe_load((folder / "demo.yaml").read_text())
        targets = {"unit_conversion": tree.pop("target")}
        for family in set(families) - set(targets):
            rows = draw_different(generator_of(family), 20, rng=np.random.default_rng(7))
            write_target(folder / f"{family}.jsonl", rows[:8], rows[8:])
            files = {"validation": f"{family}.jsonl", "test": f"{family}.jsonl"}
            targets[family] = {"name": family, **files}
        path = folder / f"{'-'.join(families)}.yaml"
        path.write_text(yaml.safe_dump(tree | {"targets": [targets[family] for family in families]}))
        return path

    return written


BOTH = ("unit_conversion", "sorting")


def run_each(plain, config_of, tmp_path_factory, changes):
    """Run for both targets at once, and for each of them in a home of its own."""
    home = tmp_path_factory.mktemp("together")
    together = plain.run_plain(config_of(*BOTH), home, *changes)
    apart = [plain.run_plain(config_of(name), tmp_path_factory.mktemp(name), *changes) for name in BOTH]
    return together, apart


@pytest.fixture(scope="module")
def static(plain, config_of, tmp_path_factory):
    return run_each(plain, config_of, tmp_path_factory, SMALL)


@pytest.fixture(scope="module")
def dynamic(plain, config_of, tmp_path_factory):
    return run_each(plain, config_of, tmp_path_factory, DYNAMIC)


def selections(outcome):
    return [read_selected(period.draws)["sample_id"].to_list() for period in outcome.chosen.periods]


def recorded(run, column):
    """Return a column of the table `selections` for each target, its periods in order."""
    with open_catalog(run.plan.workspace.catalog, read_only=True) as con:
        found = con.execute(f"SELECT selection_version, {column} FROM selections").fetchall()
    return [[dict(found)[version] for version in outcome.versions] for outcome in run.outcomes]


@EACH_MODE
def test_targets_together_get_the_selections_that_they_get_apart(mode, request):
    together, apart = request.getfixturevalue(mode)
    first, second = map(selections, together.outcomes)
    assert all(set(mine) != set(other) for mine, other in zip(first, second, strict=True))
    for outcome, alone in zip(together.outcomes, apart, strict=True):
        assert outcome.target == alone.outcomes[0].target
        assert selections(outcome) == selections(alone.outcomes[0])


def test_static_targets_cost_what_their_distinct_draws_cost(static):
    together, apart = static
    candidates = len(candidate_ids(together.inputs.drawable))
    pulls = [set(read_pulls(outcome.chosen.periods[0].draws)["sample_id"]) for outcome in together.outcomes]
    assert [len(drawn) for drawn in pulls] == [75, 75]
    assert len(pulls[0] & pulls[1]) > 0 < len(pulls[1] - pulls[0])
    assert together.result.work.gradient_evaluations == candidates + len(pulls[0] | pulls[1])
    for alone in apart:
        assert alone.result.work.gradient_evaluations == candidates + 75
    computed, reused = (
        recorded(together, "gradient_evaluations"),
        recorded(together, "gradient_evaluations_reused"),
    )
    assert computed == [[candidates + 75], [len(pulls[1] - pulls[0])]]
    assert reused == [[0], [candidates + len(pulls[0] & pulls[1])]]


@pytest.mark.slow
def test_dynamic_targets_share_the_first_period(dynamic):
    together, apart = dynamic
    candidates = len(candidate_ids(together.inputs.drawable))
    assert recorded(together, "gradient_evaluations") == [[candidates, 30, 30, 30], [0, 30, 30, 30]]
    assert recorded(together, "gradient_evaluations_reused") == [[0, 0, 0, 0], [candidates, 0, 0, 0]]
    cost = together.result.work.gradient_evaluations
    assert cost == candidates + 2 * 3 * 30
    assert cost <= 0.62 * sum(alone.result.work.gradient_evaluations for alone in apart)


@EACH_MODE
def test_the_costs_of_the_versions_add_up_to_what_was_computed(mode, request):
    together, _ = request.getfixturevalue(mode)
    computed = sum(map(sum, recorded(together, "gradient_evaluations")))
    assert computed == together.result.work.gradient_evaluations
    periods = [period for outcome in together.outcomes for period in outcome.chosen.periods]
    spaces = {plain_space(space) for period in periods for space in period.spec.spaces}
    stored = [len(open_store(space, together.plan.workspace).known) for space in spaces]
    # those of the warmup are shared: two in static mode, one in dynamic mode, where each target trains on
    assert len(stored) == (2 if mode == "static" else 1 + 2 * 3)
    assert sum(map(sum, recorded(together, "target_gradient_evaluations"))) == sum(stored) > 28 * 2


def test_a_repeat_and_a_run_for_one_of_the_targets_find_the_versions(plain, config_of, static):
    together, _ = static
    home = Path(together.plan.workspace.home)
    for names, versions in ((BOTH, (1, 2)), (BOTH[1:], (2,)), (BOTH[::-1], (2, 1))):
        again = plain.run_plain(config_of(*names), home, *SMALL)
        assert again.result.versions == versions
        assert again.result.work == Work(gradient_evaluations=0, trainings=0)


def test_evaluations_name_their_target(static):
    together, _ = static
    with open_catalog(together.plan.workspace.catalog, read_only=True) as con:
        for outcome in together.outcomes:
            found = selection_evaluations(con, outcome.versions[-1])
            assert found["target"].unique().to_list() == found["task"].unique().to_list() == [outcome.target]
            assert found["subject"].unique(maintain_order=True).to_list() == ["selection", "zero_shot"]


def test_a_leak_into_one_target_is_drawn_for_the_other_only(plain, config_of, tmp_path):
    # the first period takes all candidates, the second draws all of them from the clusters
    changes = (*SMALL, "mode=dynamic", "warmup.steps=3", "finetune.epochs=2", "selection.budget_fraction=1.0")
    run = plain.run_plain(config_of("unit_conversion", "json_extraction"), tmp_path, *changes)
    inputs = run.targets[1]
    leaks = {item.sample_id for item in candidate_exclusions(inputs.candidates) if item.stage == "leak"}
    assert len(leaks) == 5
    assert not leaks & set(candidate_ids(inputs.trainable))
    assert leaks < set(candidate_ids(inputs.drawable))
    first, second = (set(read_pulls(item.chosen.periods[-1].draws)["sample_id"]) for item in run.outcomes)
    assert first - second == leaks
    assert second < first
    query = "SELECT scope_id, count(*) FROM exclusions WHERE stage = 'leak' GROUP BY scope_id"
    with open_catalog(run.plan.workspace.catalog, read_only=True) as con:
        found = dict(con.execute(query).fetchall())
    assert found == {str(version): 5 for version in run.outcomes[1].versions}


def test_a_random_baseline_serves_all_targets(plain, config_of, tmp_path):
    names = ("unit_conversion", "json_extraction")
    run = plain.run_plain(
        config_of(*names), tmp_path, *SMALL, "selection.policy=random", baselines=("random:0",)
    )
    assert run.result.work.trainings == 3
    assert [item.subject for item in run.outcomes[1].subjects] == ["selection", "random:0", "zero_shot"]
    sources = [{s.subject: s.sources for s in outcome.subjects} for outcome in run.outcomes]
    assert sources[0]["random:0"] == sources[1]["random:0"]
