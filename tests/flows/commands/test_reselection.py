"""`reselect`: what it prints of a change, of no change, and where there is nothing to follow."""

import json
import sys
from types import SimpleNamespace

import pytest

from clusterucb_core.reselection import ReselectionResult, TargetReselection
from clusterucb_core.stages.clusters import ClusterFit
from clusterucb_core.stages.pool_change import PoolChange
from clusterucb_core.stages.summary import Work
from clusterucb_core.store import ChangeCounts, SelectionDifference


def counts(name, added, removed, kept, move=None):
    return ChangeCounts(name=name, added=added, removed=removed, kept=kept, mean_rank_move=move)


def result(changed=True, **fields):
    target = TargetReselection(
        target="sums",
        versions=(3, 4),
        selection_version=4,
        followed_version=2,
        change=PoolChange(n_samples=1250, n_added=300, n_removed=50, n_since_warmup=300),
        fit=ClusterFit(mean_distance=0.5, at_clustering=0.4, drift=0.25, is_new=False),
        difference=SelectionDifference(
            a=2,
            b=4,
            total=counts("all", 10, 12, 90, 2.5),
            by_source=(counts("web", 10, 2, 40, 1.0), counts("books", 0, 10, 50, 3.5)),
            by_cluster=tuple(counts(str(number), 1, 1, 1, 0.0) for number in range(15)),
        ),
    )
    values = {
        "run_id": "new", "followed_run_id": "0123456789", "pool_version": 2, "changed": changed,
        "new_warmup": False, "targets": (target,), "work": Work(gradient_evaluations=364, trainings=0),
        "mlflow_run_id": None, "seconds": 4.2,
    }  # fmt: skip
    return ReselectionResult(**{**values, **fields})


@pytest.fixture
def reselected(monkeypatch):
    """Put a result in the place of the re-selection, and keep what it was asked for."""
    asked = {}

    def replace(outcome):
        def run(config, execution, **options):
            asked.update(options, config=config)
            return outcome

        monkeypatch.setitem(sys.modules, "flows.reselection", SimpleNamespace(run_reselection=run))
        monkeypatch.setattr("clusterucb_core.trails.followed_trail", lambda plan: None)
        return asked

    return replace


def test_a_change_is_told_in_total_by_source_and_by_cluster(call, config_file, reselected):
    reselected(result())
    lines = [line.split() for line in call("reselect", config_file).out.splitlines()]
    told = " ".join(lines[0])
    assert told == "target sums: selection version 2 -> 4; of 1,250 samples 300 are new, 50 are gone"
    assert "drift +0.250" in " ".join(lines[1])
    assert ["web", "10", "2", "40", "1.0000"] in lines
    assert ["(3", "more)"] in [line[:2] for line in lines]
    assert "364 gradient evaluations" in " ".join(" ".join(line) for line in lines)


def test_an_unchanged_pool_is_said_to_be_so(call, config_file, reselected):
    reselected(result(changed=False))
    told = call("reselect", config_file).out
    assert told == "the pool has not changed since selection version 4 (sums): nothing to do\n"


def test_options_reach_the_run_and_the_result_is_json(call, config_file, reselected):
    asked = reselected(result())
    outcome = call("reselect", config_file, "--new-warmup", "--train", "--json")
    assert (asked["new_warmup"], asked["train"]) == (True, True)
    assert json.loads(outcome.out)["targets"][0]["difference"]["total"]["added"] == 10


def test_without_a_run_to_follow_it_ends_with_1_and_says_what_to_do(call, config_file):
    outcome = call("reselect", config_file)
    assert outcome.code == 1
    assert outcome.err.startswith("error: no finished run with these settings, model and targets")
    assert "clusterucb run CONFIG" in outcome.err
